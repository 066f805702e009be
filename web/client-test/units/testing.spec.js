import { expect, test } from "vitest";

import { createClient } from "@cloakroom-bff/client";
import { mockClient, signIn } from "@cloakroom-bff/client/testing";

test("the mock client has every member of the client", () => {
  const client = createClient({ events: false });
  for (const name of Object.keys(client)) expect(mockClient(), name).toHaveProperty(name);
  client.close();
});

test("the mock client goes through the states and emits the events", async () => {
  const client = mockClient({ user: { sub: "alice" }, fetch: (request) => new Response(new URL(request.url).pathname) });
  const events = [];
  for (const event of ["signed-in", "signed-out", "change", "state"]) client.on(event, () => events.push(event));
  expect((await client.session()).user).toEqual({ sub: "alice" });
  expect(await (await client.fetch("/api/orders")).text()).toBe("/api/orders");
  client.expire(10);
  expect(client.state).toEqual({ status: "expiring", seconds: 10, reason: "idle" });
  client.logout();
  expect([client.current, client.state]).toEqual([{ authenticated: false }, { status: "ended", reason: "logout" }]);
  expect((await client.login({ window: true })).authenticated).toBe(true);
  client.unreachable();
  await expect(client.session()).rejects.toThrow(TypeError);
  expect(client.current.authenticated).toBe(true);
  expect(events).toEqual(["state", "state", "signed-out", "change", "state", "signed-in", "change", "state"]);
});

test("the mock client calls a listener that is added twice until both are removed", () => {
  const client = mockClient();
  let calls = 0;
  const count = () => calls++;
  const [off, offToo] = [client.on("change", count), client.on("change", count)];
  off();
  client.signIn({ sub: "alice" });
  offToo();
  client.signOut();
  expect(calls).toBe(1);
});

test("the methods of the mock client work without it, as those of the client", async () => {
  const { login, logout, fetch, session } = mockClient({ fetch: async (request) => Response.json([request.method, request.headers.get("X-CSRF"), await request.text()]) });
  login();
  expect((await session()).authenticated).toBe(true);
  logout();
  expect((await session()).authenticated).toBe(false);
  const request = new Request("http://localhost:3000/api/orders", { method: "POST", body: "first" });
  expect(await (await fetch(request, { body: "second" })).json()).toEqual(["POST", "1", "second"]);
});

test("signIn reports what is wrong", async () => {
  const page = (status, body) => ({
    url: () => "about:blank",
    goto: () => expect.unreachable(),
    request: { post: async (url) => ({ status: () => status, url: () => url, json: async () => body }) },
  });
  await expect(signIn(page(404), "alice")).rejects.toThrow("/bff/dev/sign-in does not exist");
  await expect(signIn(page(400, { detail: "there is no user eve" }), "eve")).rejects.toThrow("there is no user eve");
});
