// Code that imports the app's own client module, as docs/frontend.md tests it.
import { expect, test, vi } from "vitest";

import { bff } from "./bff.js";

vi.mock("./bff.js", async () => {
  const { mockClient } = await import("@cloakroom-bff/client/testing");
  return { bff: mockClient({ user: { sub: "alice" }, fetch: () => Response.json([]) }) };
});

test("the client of the app is replaced", async () => {
  expect((await bff.session()).user).toEqual({ sub: "alice" });
  expect(await (await bff.fetch("/api/orders")).json()).toEqual([]);
});
