import "@angular/compiler";
import { provideHttpClient, HttpClient, withFetch, withInterceptors } from "@angular/common/http";
import { Component, inject, provideZonelessChangeDetection } from "@angular/core";
import { bootstrapApplication } from "@angular/platform-browser";
import { provideRouter, Router, RouterOutlet } from "@angular/router";
import { firstValueFrom } from "rxjs";
import { afterEach, beforeEach, expect, test } from "vitest";

import { Cloakroom, cloakroomInterceptor, provideCloakroom, requireSession } from "@cloakroom-bff/client/angular";
import { mockClient } from "@cloakroom-bff/client/testing";

const Page = component(class {}, { selector: "app-page", template: "page" });
const App = component(
  class {
    bff = inject(Cloakroom);
  },
  { selector: "app-root", template: "{{ bff.authenticated() ? bff.user().name : 'nobody' }} {{ bff.state().status }}<router-outlet />", imports: [RouterOutlet] },
);

function component(type, options) {
  Component(options)(type);
  return type;
}

let app;
let requests;
let respond;

beforeEach(() => {
  document.head.innerHTML = '<base href="/shop/">';
  document.body.innerHTML = "<app-root></app-root>";
  requests = [];
  globalThis.fetch = async (url, init) => {
    requests.push({ url: String(url), csrf: new Headers(init.headers).get("X-CSRF") });
    return respond();
  };
});
afterEach(() => app.destroy());

async function start(client, options) {
  app = await bootstrapApplication(App, {
    providers: [
      provideZonelessChangeDetection(),
      provideCloakroom(client, options),
      provideHttpClient(withFetch(), withInterceptors([cloakroomInterceptor])),
      provideRouter([{ path: "orders/:id", component: Page, canActivate: [requireSession] }]),
    ],
  });
}

const text = async () => {
  await app.whenStable();
  return document.querySelector("app-root").textContent;
};

test("the signals render again when the session changes", async () => {
  const client = mockClient();
  await start(client);
  expect(await text()).toBe("nobody signed-out");
  client.signIn({ sub: "alice", name: "Alice" });
  expect(await text()).toBe("Alice signed-in");
  client.signOut("idle");
  expect(await text()).toBe("nobody ended");
});

test("the guard leads to the sign-in, which returns to the route", async () => {
  const client = mockClient();
  const logins = [];
  client.login = (options) => logins.push(options);
  await start(client);
  const router = app.injector.get(Router);
  expect(await router.navigateByUrl("/orders/7?page=2")).toBe(false);
  expect(logins).toEqual([{ returnTo: "/shop/orders/7?page=2" }]);
  client.signIn({ sub: "alice", name: "Alice" });
  expect(await router.navigateByUrl("/orders/7?page=2")).toBe(true);
  expect(await text()).toBe("Alice signed-inpage");
  client.unreachable();
  expect(await router.navigateByUrl("/orders/8")).toBe(true);
});

for (const notice of [true, false]) {
  test(`after an end the guard waits, with notice: ${notice}`, async () => {
    const client = mockClient({ user: { sub: "alice", name: "Alice" } });
    client.login = () => expect.unreachable();
    await start(client, { notice });
    const router = app.injector.get(Router);
    expect(await router.navigateByUrl("/orders/7")).toBe(true);
    client.signOut("idle");
    expect(document.querySelector("dialog")?.textContent.includes("not active") ?? false).toBe(notice);
    const navigation = router.navigateByUrl("/orders/8");
    await new Promise((done) => setTimeout(done));
    client.signIn({ sub: "alice", name: "Alice" });
    expect([await navigation, document.querySelector("dialog")]).toEqual([true, null]);
  });
}

test("the guard waits while the broker cannot be reached", async () => {
  const client = mockClient({ state: { status: "loading" } });
  client.session = () => Promise.reject(new TypeError("Failed to fetch"));
  await start(client);
  const navigation = app.injector.get(Router).navigateByUrl("/orders/7");
  await new Promise((done) => setTimeout(done));
  client.signIn({ sub: "alice", name: "Alice" });
  expect(await navigation).toBe(true);
  expect(await text()).toBe("Alice signed-inpage");
});

test("the interceptor adds the CSRF header for this origin only", async () => {
  respond = () => new Response("{}", { headers: { "Content-Type": "application/json" } });
  await start(mockClient());
  const http = app.injector.get(HttpClient);
  await firstValueFrom(http.get("/api/orders"));
  await firstValueFrom(http.get("https://elsewhere.example.com/"));
  expect(requests.map(({ csrf }) => csrf)).toEqual(["1", null]);
});

test("the interceptor notices that the session has ended", async () => {
  const client = mockClient({ user: { sub: "alice" } });
  const fresh = [];
  client.session = async (...options) => fresh.push(options);
  await start(client);
  const http = app.injector.get(HttpClient);
  for (const code of ["not_signed_in", "navigation_only"]) {
    respond = () => new Response(JSON.stringify({ code }), { status: 401, headers: { "Content-Type": "application/problem+json" } });
    await expect(firstValueFrom(http.get("/api/orders"))).rejects.toMatchObject({ status: 401 });
  }
  expect(fresh).toEqual([[], [true]]);
});
