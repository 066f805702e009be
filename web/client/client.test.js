import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { createClient, ProblemError } from "./client.js";

const origin = "https://app.example.com";

/** The parts of a browser that Node lacks. Each test has a new page. */
let page;

beforeEach(() => {
  page = { requests: [], responses: [], visited: [], tabs: [], pageshow: [], messages: new Set(), errors: [], forms: [], frames: [] };
  globalThis.location = {
    origin,
    href: `${origin}/orders?page=2#third`,
    pathname: "/orders",
    search: "?page=2",
    hash: "#third",
    assign: (url) => page.visited.push(url),
  };
  globalThis.document = {
    baseURI: globalThis.location.href,
    createElement: () => ({
      children: [],
      append(child) {
        this.children.push(child);
      },
      submit() {
        page.forms.push(this);
      },
      contentWindow: {},
      remove() {
        page.frames = page.frames.filter((frame) => frame !== this);
      },
    }),
    body: { append: (element) => element.src && page.frames.push(element) },
  };
  globalThis.reportError = (err) => page.errors.push(err);
  globalThis.addEventListener = (type, listener) => (type === "pageshow" ? page.pageshow.push(listener) : page.messages.add(listener));
  globalThis.removeEventListener = (_, listener) => page.messages.delete(listener);
  globalThis.fetch = async (request) => {
    page.requests.push(request);
    const next = page.responses.shift();
    assert.ok(next, `unexpected request: ${request.method} ${request.url}`);
    return next;
  };
  globalThis.BroadcastChannel = class {
    constructor(name) {
      Object.assign(this, { name, sent: [], listeners: [] });
      page.tabs.push(this);
    }
    postMessage(data) {
      this.sent.push(data);
    }
    addEventListener(_, listener) {
      this.listeners.push(listener);
    }
    receive(data) {
      for (const listener of this.listeners) listener({ data });
    }
  };
});

const json = (body, status = 200, type = "application/json") =>
  new Response(JSON.stringify(body), { status, headers: { "Content-Type": type } });
const problem = (status, code, more) =>
  json({ type: "about:blank", title: "A title", status, code, request_id: "r1", ...more }, status, "application/problem+json");
const alice = (id = "s1") => ({
  authenticated: true,
  user: { sub: "alice", name: "Alice" },
  session: { id, created_at: "2026-11-01T10:00:00Z", idle_expires_at: "2026-11-01T10:30:00Z", expires_at: "2026-11-01T22:00:00Z", access_token_expires_at: "2026-11-01T10:01:00Z" },
});
const nobody = { authenticated: false };
const notSignedIn = () => problem(401, "not_signed_in", { login_url: "/bff/login" });

/** Records the names of the events that a client emits. */
function record(client) {
  const events = [];
  for (const event of ["signed-in", "signed-out", "change"]) client.on(event, () => events.push(event));
  return events;
}

/** Waits until all pending promises are settled. */
const settle = () => new Promise((done) => setImmediate(done));

test("the prefix is an option, else that of the module URL, else /bff", async () => {
  page.responses = [json(nobody), json(nobody), json(nobody)];
  await createClient({ prefix: "/auth" }).session();
  await createClient().session();
  // In Node the URL of the module is that of its file.
  const { pathname } = new URL("./client.js", import.meta.url);
  const bundled = await import(`data:text/javascript,${encodeURIComponent(await (await import("node:fs/promises")).readFile(new URL("./client.js", import.meta.url), "utf8"))}`);
  await bundled.createClient().session();
  assert.deepEqual(page.requests.map((r) => new URL(r.url).pathname), ["/auth/session", pathname.replace("/client.js", "/session"), "/bff/session"]);
});

test("session sends the CSRF header", async () => {
  page.responses = [json(alice())];
  const session = await createClient({ prefix: "/bff" }).session();
  assert.deepEqual(session, alice());
  const [request] = page.requests;
  assert.equal(request.method, "GET");
  assert.equal(request.url, `${origin}/bff/session`);
  assert.equal(request.headers.get("X-CSRF"), "1");
  assert.equal(request.mode, "same-origin");
});

test("refresh sends a POST and returns the session state", async () => {
  page.responses = [json(alice())];
  assert.deepEqual(await createClient({ prefix: "/bff" }).refresh(), alice());
  assert.equal(page.requests[0].method, "POST");
  assert.equal(page.requests[0].url, `${origin}/bff/session/refresh`);
});

test("a problem of the broker is a ProblemError with its members", async () => {
  page.responses = [problem(503, "store_unavailable", { detail: "Try again." })];
  await assert.rejects(createClient({ prefix: "/bff" }).session(), (err) => {
    assert.ok(err instanceof ProblemError && err instanceof Error);
    assert.equal(err.name, "ProblemError");
    assert.equal(err.message, "A title: Try again.");
    assert.deepEqual([err.status, err.code, err.loginUrl, err.requestId], [503, "store_unavailable", undefined, "r1"]);
    return true;
  });
});

test("an error of a proxy in between is a ProblemError without a code", async () => {
  for (const response of [
    new Response("<h1>Bad gateway</h1>", { status: 502, headers: { "Content-Type": "text/html" } }),
    new Response("{", { status: 502, headers: { "Content-Type": "application/problem+json" } }),
    new Response("null", { status: 502, headers: { "Content-Type": "application/problem+json" } }),
  ]) {
    page.responses = [response];
    await assert.rejects(createClient({ prefix: "/bff" }).session(), { name: "ProblemError", status: 502, code: undefined, message: "The response has status 502" });
  }
});

test("fetch adds X-CSRF and keeps its arguments", async () => {
  page.responses = [json({}), json({}), json({}), json({})];
  const client = createClient({ prefix: "/bff" });
  await client.fetch("/api/orders", { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" });
  await client.fetch("more");
  await client.fetch(new URL("/api/url", origin));
  await client.fetch(new Request(`${origin}/api/request`, { method: "PUT", headers: { "If-Match": '"1"' }, body: "x" }));
  const [orders, more, url, request] = page.requests;
  assert.deepEqual([orders.method, orders.url, orders.headers.get("Content-Type"), await orders.text()], ["POST", `${origin}/api/orders`, "application/json", "{}"]);
  assert.equal(more.url, `${origin}/more`);
  assert.equal(url.url, `${origin}/api/url`);
  assert.deepEqual([request.method, request.headers.get("If-Match"), await request.text()], ["PUT", '"1"', "x"]);
  for (const r of page.requests) {
    assert.equal(r.headers.get("X-CSRF"), "1");
    assert.equal(r.headers.has("X-Background"), false);
    assert.equal(r.mode, "same-origin");
  }
});

test("a background call sends X-Background", async () => {
  page.responses = [json({}), json({})];
  const client = createClient({ prefix: "/bff" });
  await client.fetch("/api/news", { background: true });
  await client.fetch(new Request(`${origin}/api/news`, { headers: { Accept: "text/plain" } }), { background: true });
  assert.deepEqual(page.requests.map((r) => [r.headers.get("X-Background"), r.headers.get("Accept")]), [["1", null], ["1", "text/plain"]]);
});

test("fetch sends nothing to another origin", async () => {
  const client = createClient({ prefix: "/bff" });
  for (const elsewhere of ["https://evil.example/x", "//evil.example/x", "http://app.example.com/x", "https://app.example.com:8443/x", "data:text/plain,x", new Request("https://evil.example/x")]) {
    await assert.rejects(client.fetch(elsewhere), TypeError);
  }
  assert.equal(page.requests.length, 0);
});

test("a 401 of the broker emits signed-out once; its body can be read", async () => {
  page.responses = [json(alice()), notSignedIn(), notSignedIn()];
  const client = createClient({ prefix: "/bff" });
  await client.session();
  const events = record(client);
  const response = await client.fetch("/api/me");
  assert.equal(response.status, 401);
  assert.equal((await response.json()).login_url, "/bff/login");
  await client.fetch("/api/me");
  assert.deepEqual(events, ["signed-out", "change"]);
});

test("a 401 emits signed-out on a page that did not call session", async () => {
  page.responses = [notSignedIn()];
  const client = createClient({ prefix: "/bff" });
  const events = record(client);
  await client.fetch("/api/me");
  assert.deepEqual(events, ["signed-out", "change"]);
});

test("challenge returns the options of the login that is required", () => {
  const client = createClient({ prefix: "/bff" });
  const response = (status, challenge) => new Response("", { status, headers: challenge ? { "WWW-Authenticate": challenge } : {} });
  const challenge = 'Bearer realm="api", error="insufficient_user_authentication", acr_values="gold platinum", max_age="300"';
  assert.deepEqual(client.challenge(response(401, challenge)), { acrValues: "gold platinum", maxAge: 300 });
  assert.deepEqual(client.challenge(response(401, 'Bearer error="insufficient_user_authentication", max_age=5')), { maxAge: 5 });
  for (const other of [response(401), response(403, challenge), response(401, 'Bearer error="invalid_token"'), response(401, 'Cookie realm="cloakroom"')]) {
    assert.equal(client.challenge(other), undefined);
  }
  client.login(client.challenge(response(401, challenge)));
  assert.deepEqual(page.visited, ["/bff/login?return_to=%2Forders%3Fpage%3D2%23third&acr_values=gold+platinum&max_age=300"]);
});

test("no other response emits signed-out", async () => {
  const client = createClient({ prefix: "/bff" });
  page.responses = [json(alice())];
  await client.session();
  const events = record(client);
  for (const response of [
    problem(401, "navigation_only"),
    problem(403, "not_signed_in"),
    problem(503, "store_unavailable"),
    json({ code: "not_signed_in" }, 401),
    new Response("no", { status: 401 }),
  ]) {
    page.responses = [response];
    await client.fetch("/api/me");
  }
  assert.deepEqual(events, []);
});

test("signed-in, signed-out and change are emitted on a change only", async () => {
  const later = alice();
  later.session.access_token_expires_at = "2026-11-01T10:02:00Z";
  page.responses = [json(nobody), json(alice()), json(alice()), json(later), json(nobody)];
  const client = createClient({ prefix: "/bff" });
  const events = record(client);
  const perCall = [];
  for (let i = 0; i < 5; i++) {
    await client.session();
    perCall.push(events.splice(0));
  }
  assert.deepEqual(perCall, [["change"], ["signed-in", "change"], [], ["change"], ["signed-out", "change"]]);
});

test("a response that arrives after a later one is discarded", async () => {
  let resolveFirst;
  globalThis.fetch = () => new Promise((resolve) => (resolveFirst = resolve));
  const client = createClient({ prefix: "/bff" });
  const first = client.session();
  await settle();
  globalThis.fetch = async () => json(nobody);
  await client.session();
  const events = record(client);
  resolveFirst(json(alice()));
  await first;
  assert.deepEqual(events, []);
});

test("on returns a function that removes the listener; unknown events throw", async () => {
  page.responses = [json(alice()), json(nobody)];
  const client = createClient({ prefix: "/bff" });
  const seen = [];
  const off = client.on("change", (session) => seen.push(session));
  await client.session();
  off();
  await client.session();
  assert.deepEqual(seen, [alice()]);
  assert.throws(() => client.on("signedout", () => {}), TypeError);
});

test("a listener that throws does not affect other listeners or the caller", async () => {
  page.responses = [json(alice())];
  const client = createClient({ prefix: "/bff" });
  const mistake = new Error("a mistake");
  client.on("signed-in", () => {
    throw mistake;
  });
  const events = record(client);
  await client.session();
  assert.deepEqual(events, ["signed-in", "change"]);
  assert.deepEqual(page.errors, [mistake]);
});

test("login navigates to the broker and returns to this page by default", () => {
  const client = createClient({ prefix: "/bff" });
  client.login();
  client.login({ returnTo: "/a?b=c&d", prompt: "login", loginHint: "alice@example.com", acrValues: "mfa", maxAge: 0, uiLocales: "de en" });
  const [here, there] = page.visited.map((url) => new URL(url, origin));
  assert.equal(here.pathname, "/bff/login");
  assert.deepEqual(Object.fromEntries(here.searchParams), { return_to: "/orders?page=2#third" });
  assert.deepEqual(Object.fromEntries(there.searchParams), {
    return_to: "/a?b=c&d",
    prompt: "login",
    login_hint: "alice@example.com",
    acr_values: "mfa",
    max_age: "0",
    ui_locales: "de en",
  });
});

test("logout submits a form, so that no script reads the redirect", () => {
  createClient({ prefix: "/bff" }).logout({ returnTo: "/bye" });
  const [form] = page.forms;
  assert.deepEqual([form.method, form.action], ["POST", "/bff/logout"]);
  assert.deepEqual(form.children.map(({ type, name, value }) => [type, name, value]), [["hidden", "return_to", "/bye"]]);
  assert.equal(page.requests.length, 0);
});

test("a tab requests the state only if another tab has another session", async () => {
  page.responses = [json(alice("s1")), json(nobody), json(alice("s2"))];
  const client = createClient({ prefix: "/bff" });
  await client.session();
  const events = record(client);
  const [tab] = page.tabs;
  assert.deepEqual(tab.sent, ["s1"]);

  tab.receive("s1"); // another tab loaded
  await settle();
  assert.deepEqual([page.requests.length, events], [1, []]);

  tab.receive(null); // signed out there
  await settle();
  assert.deepEqual([page.requests.length, events.splice(0)], [2, ["signed-out", "change"]]);

  tab.receive("s2"); // signed in again
  await settle();
  assert.deepEqual([page.requests.length, events.splice(0)], [3, ["signed-in", "change"]]);
  assert.deepEqual(tab.sent, ["s1", null, "s2"]);
});

test("a page that is restored from the back/forward cache requests the state", async () => {
  page.responses = [json(alice()), json(nobody)];
  const client = createClient({ prefix: "/bff" });
  await client.session();
  const events = record(client);
  page.pageshow[0]({ persisted: false });
  page.pageshow[0]({ persisted: true });
  await settle();
  assert.equal(page.requests.length, 2);
  assert.deepEqual(events, ["signed-out", "change"]);
});

test("a message of another tab while the broker is down changes nothing", async () => {
  page.responses = [json(alice()), problem(503, "store_unavailable")];
  const client = createClient({ prefix: "/bff" });
  await client.session();
  const events = record(client);
  page.tabs[0].receive(null);
  await settle();
  assert.deepEqual(events, []);
});

/** Delivers the message of the silent login's page, with some fields replaced. */
const deliver = (event = {}) => {
  for (const listener of [...page.messages]) {
    listener({ origin, source: page.frames[0].contentWindow, data: { type: "cloakroom:silent-login", authenticated: true }, ...event });
  }
};

test("silentLogin loads a frame and accepts messages of that frame only", async () => {
  const client = createClient({ prefix: "/bff" });
  let outcome;
  const silent = client.silentLogin().then((authenticated) => (outcome = authenticated));
  assert.deepEqual(page.frames.map(({ src, hidden }) => [src, hidden]), [["/bff/silent-login", true]]);
  deliver({ origin: "https://evil.example.com" });
  deliver({ source: {} });
  deliver({ data: { type: "something else", authenticated: true } });
  deliver({ data: null });
  await new Promise(setImmediate);
  assert.equal(outcome, undefined);
  page.responses.push(json({ authenticated: true, user: { sub: "alice" }, session: { id: "s1" } }));
  const signedIn = [];
  client.on("signed-in", ({ user }) => signedIn.push(user.sub));
  deliver();
  await silent;
  assert.deepEqual([outcome, signedIn, page.frames, page.messages.size], [true, ["alice"], [], 0]);
});

test("silentLogin returns false without the message authenticated: true", async () => {
  for (const authenticated of [false, undefined, "true", 1]) {
    const silent = createClient({ prefix: "/bff" }).silentLogin();
    deliver({ data: { type: "cloakroom:silent-login", authenticated } });
    assert.equal(await silent, false);
  }
  assert.equal(await createClient({ prefix: "/bff" }).silentLogin({ timeout: 5 }), false);
  assert.deepEqual([page.requests, page.frames, page.messages.size], [[], [], 0]);
});

test("stepUp navigates to the login that a challenge requires", () => {
  const client = createClient({ prefix: "/bff" });
  const response = (status, challenge) => new Response("", { status, headers: challenge ? { "WWW-Authenticate": challenge } : {} });
  assert.equal(client.stepUp(response(401, 'Bearer error="invalid_token"')), false);
  assert.equal(client.stepUp(response(403, 'Bearer error="insufficient_user_authentication"')), false);
  assert.equal(client.stepUp(response(200)), false);
  assert.deepEqual(page.visited, []);
  assert.equal(client.stepUp(response(401, 'DPoP error="insufficient_user_authentication", acr_values="gold silver", max_age="60"'), { uiLocales: "de" }), true);
  const { pathname, searchParams } = new URL(page.visited[0], origin);
  assert.equal(pathname, "/bff/login");
  assert.deepEqual(Object.fromEntries(searchParams), { return_to: "/orders?page=2#third", acr_values: "gold silver", max_age: "60", ui_locales: "de" });
});
