import { QueryClient, QueryClientProvider, useQuery } from "@tanstack/react-query";
import { createMemoryHistory, createRootRoute, createRoute, createRouter, RouterProvider } from "@tanstack/react-router";
import { act, createElement as h } from "react";
import { createRoot } from "react-dom/client";
import { expect, test } from "vitest";

import { ProblemError } from "@cloakroom-bff/client";
import { followSession, queryDefaults, requireSession } from "@cloakroom-bff/client/tanstack";
import { mockClient } from "@cloakroom-bff/client/testing";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;
window.scrollTo = () => {};

/** Renders orders, and counts their requests. */
async function orders(client, respond) {
  const queryClient = new QueryClient({ defaultOptions: queryDefaults });
  const calls = [];
  const off = followSession(queryClient, client);
  function Orders() {
    const query = useQuery({
      queryKey: ["orders"],
      queryFn: async () => {
        calls.push(client.current.user?.sub);
        const response = await respond();
        if (!response.ok) throw await ProblemError.from(response);
        return response.text();
      },
    });
    return query.data ?? query.status;
  }
  const page = document.createElement("div");
  await act(async () => createRoot(page).render(h(QueryClientProvider, { client: queryClient }, h(Orders))));
  return { page, calls, off, queryClient };
}

const until = (condition) => act(() => expect.poll(condition, { timeout: 10_000 }).toBe(true));

test("a 401 is not retried, a 503 is", async () => {
  const refused = await orders(mockClient(), () => new Response(null, { status: 401 }));
  await until(() => refused.page.textContent === "error");
  expect(refused.calls.length).toBe(1);
  const failing = await orders(mockClient(), () => new Response(null, { status: failing ? 200 : 503 }));
  await until(() => failing.calls.length > 1);
});

test("queries are fetched after a sign-in, not after a sign-out", async () => {
  const client = mockClient({ user: { sub: "alice" } });
  const { calls, page, off } = await orders(client, () => new Response(`orders of ${client.current.user?.sub}`));
  await until(() => page.textContent === "orders of alice");
  await act(async () => client.signOut("idle"));
  expect([calls, page.textContent]).toEqual([["alice"], "orders of alice"]);
  await act(async () => client.signIn({ sub: "alice" }));
  await until(() => calls.length === 2);
  await act(async () => client.signIn({ sub: "bob" }));
  await until(() => page.textContent === "orders of bob");
  off();
  await act(async () => client.signOut());
  await act(async () => client.signIn({ sub: "bob" }));
  expect(calls).toEqual(["alice", "alice", "bob"]);
});

test("the guard leads to the sign-in and passes the user on", async () => {
  const client = mockClient();
  const logins = [];
  client.login = (options) => logins.push(options);
  const rootRoute = createRootRoute();
  const secret = createRoute({
    getParentRoute: () => rootRoute,
    path: "/orders/$id",
    beforeLoad: requireSession(client),
    component: () => `orders of ${secret.useRouteContext().user.sub}`,
  });
  const open = async (path) => {
    const router = createRouter({ routeTree: rootRoute.addChildren([secret]), basepath: "/shop", history: createMemoryHistory({ initialEntries: [path] }) });
    const page = document.createElement("div");
    await act(async () => createRoot(page).render(h(RouterProvider, { router })));
    return page;
  };
  const page = await open("/shop/orders/7?page=2");
  await until(() => logins.length === 1);
  expect([page.textContent, logins]).toEqual(["", [{ returnTo: "/shop/orders/7?page=2" }]]);
  client.signIn({ sub: "alice" });
  const signedIn = await open("/shop/orders/7");
  await until(() => signedIn.textContent === "orders of alice");
});

test("after an end the guard shows a notice and waits", async () => {
  const client = mockClient({ user: { sub: "alice" } });
  client.login = () => expect.unreachable();
  const guard = requireSession(client);
  expect(await guard({ location: { href: "/orders/7" } })).toEqual({ user: { sub: "alice" } });
  client.signOut("revoked");
  expect(document.querySelector("dialog").textContent).toContain("from another device");
  const next = guard({ location: { href: "/orders/8" } });
  client.signIn({ sub: "alice" });
  expect([await next, document.querySelector("dialog")]).toEqual([{ user: { sub: "alice" } }, null]);
});

test("the guard waits while the broker cannot be reached", async () => {
  const client = mockClient({ state: { status: "loading" } });
  client.session = () => Promise.reject(new TypeError("Failed to fetch"));
  const guard = requireSession(client)({ location: { href: "/orders/7" } });
  await new Promise((done) => setTimeout(done));
  client.signIn({ sub: "alice" });
  expect(await guard).toEqual({ user: { sub: "alice" } });
});
