import { expect, test } from "vitest";

import { createClient, ProblemError } from "@cloakroom-bff/client";

test("the README's import works with the broker of this origin", async () => {
  const requests = [];
  globalThis.fetch = async (request) => {
    requests.push(new URL(request.url).pathname);
    return new Response('{"authenticated":false}');
  };
  const bff = createClient();
  expect(await bff.session()).toEqual({ authenticated: false });
  expect(bff.state).toEqual({ status: "signed-out" });
  expect(requests).toEqual(["/bff/session"]);
  expect(new ProblemError(500)).toBeInstanceOf(Error);
  bff.close();
});
