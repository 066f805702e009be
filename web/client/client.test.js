import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { afterEach, beforeEach, mock, test } from "node:test";

import { createClient, ProblemError } from "./client.js";

const origin = "https://app.example.com";

/** The parts of a browser that Node lacks. Each test has a new page. */
let page;

beforeEach(() => {
  page = { requests: [], responses: [], visited: [], tabs: [], listeners: [], errors: [], forms: [], frames: [], base: undefined, opened: [], blocked: false, streams: [], locks: [], lockTaken: false };
  if (!globalThis.navigator) globalThis.navigator = {}; // Node 20 has none
  navigator.locks = {};
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: Date.parse("2026-11-01T10:00:00Z") });
  mock.method(performance, "now", () => Date.now());
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
    hidden: false,
    querySelector: () => page.base,
    createElement: () => ({
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
  globalThis.dispatchEvent = (event) => dispatch(event.type, event);
  globalThis.reportError = (err) => page.errors.push(err);
  globalThis.addEventListener = (type, listener, { signal } = {}) => {
    page.listeners.push({ type, listener });
    signal?.addEventListener("abort", () => (page.listeners = page.listeners.filter((l) => l.listener !== listener)));
  };
  globalThis.fetch = async (request) => {
    page.requests.push(request);
    const next = page.responses.shift();
    assert.ok(next, `unexpected request: ${request.method} ${request.url}`);
    return next;
  };
  globalThis.open = (url) => {
    page.opened.push(url);
    return page.blocked ? null : {};
  };
  globalThis.EventSource = class {
    constructor(url) {
      Object.assign(this, { url, listeners: {} });
      page.streams.push(this);
    }
    addEventListener(type, listener) {
      this.listeners[type] = listener;
    }
    close() {
      page.streams = page.streams.filter((stream) => stream !== this);
    }
    send(type, data) {
      this.listeners[type]({ data: JSON.stringify(data) });
    }
  };
  // A lock that is free unless the test says otherwise.
  navigator.locks.request = async (name, { signal, ifAvailable }, run) => {
    assert.ok(!signal || !ifAvailable, "browsers reject both options at a time");
    page.locks.push(name);
    if (!page.lockTaken) return run({ name });
    if (ifAvailable) return run(null);
    return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  };
  globalThis.BroadcastChannel = class {
    constructor(name) {
      Object.assign(this, { name, sent: [], listeners: [] });
      page.tabs.push(this);
    }
    postMessage(data) {
      if (this.closed) throw new DOMException("the channel is closed", "InvalidStateError");
      this.sent.push(data);
    }
    addEventListener(_, listener) {
      this.listeners.push(listener);
    }
    receive(data) {
      for (const listener of this.listeners) listener({ data });
    }
    close() {
      this.closed = true;
    }
  };
});

afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

/** Lets time pass, in steps, because a timer can start the next one. */
async function advance(ms) {
  for (; ms > 60_000; ms -= 60_000) mock.timers.tick(60_000);
  mock.timers.tick(ms);
  await settle();
}

const json = (body, status = 200, type = "application/json", headers) =>
  new Response(JSON.stringify(body), { status, headers: { "Content-Type": type, ...headers } });
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

/** Calls the page's listeners for an event. */
function dispatch(type, event = {}) {
  for (const l of [...page.listeners]) if (l.type === type) l.listener(event);
}

const count = (type) => page.listeners.filter((l) => l.type === type).length;

/** Waits until all pending promises are settled. */
const settle = () => new Promise((done) => setImmediate(done));

/** Loads the client as the browser does that got this text from this URL. */
const load = async (text) => import(`data:text/javascript,${encodeURIComponent(text)}`);

test("the prefix is an option, or below the base element, or /bff", async () => {
  page.responses = [json(nobody), json(nobody), json(nobody)];
  await createClient({ prefix: "/auth" }).session();
  await createClient().session();
  page.base = { href: `${origin}/shop/` };
  await createClient().session();
  assert.deepEqual(page.requests.map((r) => new URL(r.url).pathname), ["/auth/session", "/bff/session", "/shop/bff/session"]);
});

test("the prefix below a base element never begins with a host", async () => {
  // The page at //evil.example/ has this base if its element says "./".
  page.base = { href: `${origin}//evil.example/` };
  createClient().login();
  assert.deepEqual(page.visited, ["/evil.example/bff/login?return_to=%2Forders%3Fpage%3D2%23third"]);
});

test("the broker's file takes its prefix from its URL", async () => {
  const text = await readFile(new URL("./client.js", import.meta.url), "utf8");
  const broker = text.replace(`const served = "";`, `const served = "${origin}/shop/auth/client.js";`);
  page.responses = [json(nobody)];
  await (await load(broker)).createClient().session();
  assert.deepEqual(page.requests.map((r) => new URL(r.url).pathname), ["/shop/auth/session"]);
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
    await assert.rejects(createClient({ prefix: "/bff" }).session(), { name: "ProblemError", status: 502, code: undefined, message: "Status 502" });
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
    await advance(200);
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
  await client.refresh();
  const events = record(client);
  resolveFirst(json(alice()));
  assert.deepEqual(await first, nobody);
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

test("a listener that is added twice is called until both are removed", async () => {
  page.responses = [json(alice()), json(nobody), json(alice())];
  const client = createClient({ prefix: "/bff" });
  let calls = 0;
  const count = () => calls++;
  const [off, offToo] = [client.on("change", count), client.on("change", count)];
  await client.session();
  assert.equal(calls, 2);
  off();
  off();
  await client.session(true);
  assert.equal(calls, 3);
  offToo();
  await client.session(true);
  assert.equal(calls, 3);
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

test("login sends no option that is null or undefined", () => {
  createClient({ prefix: "/bff" }).login({ returnTo: "/", prompt: undefined, loginHint: null });
  assert.deepEqual(page.visited, ["/bff/login?return_to=%2F"]);
});

test("logout submits a form, so that no script reads the redirect", () => {
  createClient({ prefix: "/bff" }).logout({ returnTo: "/bye" });
  assert.deepEqual(page.forms.map(({ method, action }) => [method, action]), [["POST", "/bff/logout?return_to=%2Fbye"]]);
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
  dispatch("pageshow", { persisted: false });
  dispatch("pageshow", { persisted: true });
  await settle();
  assert.equal(page.requests.length, 2);
  assert.deepEqual(events, ["signed-out", "change"]);
});

test("a page that signed out is loaded again when it is restored", async () => {
  let reloads = 0;
  globalThis.location.reload = () => reloads++;
  page.responses = [json(alice()), json(alice())];
  const client = createClient({ prefix: "/bff" });
  await client.session();
  dispatch("pageshow", { persisted: true });
  await settle();
  assert.deepEqual([reloads, page.requests.length], [0, 2]);
  client.logout();
  dispatch("pagehide");
  dispatch("pageshow", { persisted: true });
  await settle();
  assert.deepEqual([reloads, page.requests.length], [1, 2]);
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
  dispatch("message", { origin, source: page.frames[0].contentWindow, data: { type: "cloakroom:silent-login", authenticated: true }, ...event });
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
  page.responses.push(json(alice()));
  const signedIn = [];
  client.on("signed-in", ({ user }) => signedIn.push(user.sub));
  deliver();
  await silent;
  assert.deepEqual([outcome, signedIn, page.frames, count("message")], [true, ["alice"], [], 0]);
});

test("silentLogin returns false without the message authenticated: true", async () => {
  for (const authenticated of [false, undefined, "true", 1]) {
    const silent = createClient({ prefix: "/bff" }).silentLogin();
    deliver({ data: { type: "cloakroom:silent-login", authenticated } });
    assert.equal(await silent, false);
  }
  const silent = createClient({ prefix: "/bff" }).silentLogin({ timeout: 5 });
  await advance(5);
  assert.equal(await silent, false);
  assert.deepEqual([page.requests, page.frames, count("message")], [[], [], 0]);
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

test("calls at the same time, or right after, share a request", async () => {
  page.responses = [json(alice()), json(nobody)];
  const client = createClient({ prefix: "/bff" });
  assert.deepEqual([client.current, client.state], [undefined, { status: "loading" }]);
  const results = await Promise.all([client.session(), client.session()]);
  assert.deepEqual(results, [alice(), alice()]);
  await client.session();
  assert.equal(page.requests.length, 1);
  assert.deepEqual([client.current, client.state], [alice(), { status: "signed-in" }]);
  await advance(101);
  assert.deepEqual(await client.session(), nobody);
  assert.equal(page.requests.length, 2);
});

test("current stays the same object until it changes", async () => {
  page.responses = [json(alice()), json(alice())];
  const client = createClient({ prefix: "/bff" });
  await client.session();
  const before = client.current;
  await advance(101);
  await client.session();
  assert.equal(client.current, before);
});

/** A client that is signed in, and the states that it has emitted. */
async function signedIn(options, headers) {
  page.responses.push(json(alice(), 200, "application/json", headers));
  const client = createClient({ prefix: "/bff", ...options });
  await client.session();
  const states = [];
  client.on("state", (state) => states.push(state));
  return { client, states };
}

test("events of the stream change the state and reach other tabs", async () => {
  const { client, states } = await signedIn();
  const [stream] = page.streams;
  assert.equal(stream.url, "/bff/session/events?warn=60");
  const renamed = alice();
  renamed.user.name = "Alicia";
  stream.send("session-changed", renamed);
  assert.equal(client.current.user.name, "Alicia");
  stream.send("session-expiring", { seconds_left: 60, reason: "idle" });
  assert.deepEqual(client.state, { status: "expiring", seconds: 60, reason: "idle" });
  await advance(1000);
  assert.deepEqual(client.state, { status: "expiring", seconds: 59, reason: "idle" });
  renamed.session.idle_expires_at = "2026-11-01T11:00:00Z"; // the user did something
  stream.send("session-changed", renamed);
  assert.deepEqual(client.state, { status: "signed-in" });
  stream.send("session-ended", { reason: "backchannel" });
  assert.deepEqual(client.state, { status: "ended", reason: "backchannel" });
  assert.deepEqual(client.current, nobody);
  await settle();
  assert.deepEqual(page.streams, []);
  assert.deepEqual(states.map((s) => s.status), ["expiring", "expiring", "signed-in", "ended"]);
  assert.deepEqual(page.tabs[0].sent.filter((m) => m?.event).map((m) => m.event), ["changed", "expiring", "changed", "ended"]);
});

test("a tab without the lock uses the events of another tab", async () => {
  page.lockTaken = true;
  const { client } = await signedIn();
  assert.deepEqual([page.streams, page.locks], [[], ["cloakroom /bff", "cloakroom /bff"]]);
  page.tabs[0].receive({ event: "ended", data: { reason: "idle" } });
  assert.deepEqual(client.state, { status: "ended", reason: "idle" });
});

/** Another tab has the lock until the test calls the function that this returns. */
function lockElsewhere() {
  let grant;
  navigator.locks.request = async (name, { ifAvailable }, run) => {
    if (ifAvailable) return run(null);
    return new Promise((done) => (grant = () => done(run({ name }))));
  };
  return () => {
    grant();
    return settle();
  };
}

for (const [title, ms] of [["a minute", 60_000], ["0 ms", 0]]) {
  test(`a tab that waited for the lock opens no stream after the end: ${title} after its last request`, async () => {
    const grant = lockElsewhere();
    const { client } = await signedIn();
    await advance(ms);
    const streams = mock.method(globalThis, "EventSource");
    page.responses.push(json(nobody));
    await grant(); // before the message of the tab that had the lock
    assert.equal(streams.mock.callCount(), 0);
    assert.equal(page.requests.length, 2);
    page.tabs[0].receive({ event: "ended", data: { reason: "revoked" } });
    assert.deepEqual(client.state, { status: "ended", reason: "revoked" });
  });
}

test("a tab that waited for the lock does not use a request in flight", async () => {
  const grant = lockElsewhere();
  const { client } = await signedIn();
  await advance(60_000);
  const requests = [];
  globalThis.fetch = () => new Promise((resolve) => requests.push(resolve));
  const earlier = client.session();
  await settle();
  const streams = mock.method(globalThis, "EventSource");
  await grant();
  const [first, second] = requests;
  first(json(alice())); // sent before the session ended
  second(json(nobody));
  assert.deepEqual(await earlier, alice());
  await settle();
  assert.equal(streams.mock.callCount(), 0);
  assert.equal(requests.length, 2);
});

for (const [title, response] of [["still signed in", () => json(alice())], ["the broker is down", () => problem(503, "store_unavailable")]]) {
  test(`a tab that waited for the lock opens a stream: ${title}`, async () => {
    const grant = lockElsewhere();
    await signedIn();
    page.responses.push(response());
    await grant();
    assert.deepEqual([page.requests.length, page.streams.length], [2, 1]);
  });
}

test("a lock that is free causes no request", async () => {
  await signedIn();
  await settle();
  assert.deepEqual([page.requests.length, page.streams.length], [1, 1]);
});

test("a page that goes as it gets the lock opens no stream", async () => {
  const grant = lockElsewhere();
  await signedIn();
  await advance(60_000);
  page.responses.push(json(alice()));
  const granted = grant();
  dispatch("pagehide");
  await granted;
  assert.deepEqual(page.streams, []);
});

test("a response that was in flight at the end is discarded", async () => {
  const { client } = await signedIn();
  let respond;
  globalThis.fetch = () => new Promise((resolve) => (respond = resolve));
  await advance(101);
  const old = client.session();
  await settle();
  page.streams[0].send("session-ended", { reason: "revoked" });
  respond(json(alice()));
  assert.deepEqual(await old, nobody);
  assert.deepEqual(client.state, { status: "ended", reason: "revoked" });
});

test("a session that was replaced is requested again", async () => {
  const { client } = await signedIn();
  page.responses.push(json(alice("s2")));
  page.streams[0].send("session-ended", { reason: "replaced" });
  await settle();
  assert.equal(client.current.session.id, "s2");
  assert.equal(page.streams.length, 1);
});

test("a refused stream is retried after growing delays", async () => {
  mock.method(Math, "random", () => 0.5);
  const { client } = await signedIn();
  for (const delay of [2000, 4000, 8000]) {
    const [stream] = page.streams;
    stream.onerror();
    await settle();
    assert.deepEqual(page.streams, []);
    page.responses.push(json(alice()));
    await advance(delay - 1);
    assert.equal(page.streams.length, 0);
    await advance(1);
    assert.equal(page.streams.length, 1, `after ${delay} ms`);
  }
  assert.deepEqual(client.state, { status: "signed-in" });
  page.streams[0].onopen();
  page.streams[0].onerror();
  page.responses.push(json(nobody)); // ended meanwhile
  await advance(2000);
  await advance(600_000);
  assert.deepEqual([client.state, page.streams], [{ status: "ended", reason: undefined }, []]);
});

test("an unreachable broker changes the state only", async () => {
  mock.method(Math, "random", () => 0.5);
  const { client } = await signedIn({ events: false });
  const reachable = globalThis.fetch;
  globalThis.fetch = async () => {
    throw new TypeError("Failed to fetch");
  };
  await advance(101);
  await assert.rejects(client.session(), TypeError);
  assert.deepEqual([client.state, client.current], [{ status: "unreachable" }, alice()]);
  await advance(2000);
  globalThis.fetch = reachable;
  page.responses.push(problem(503, "store_unavailable"));
  await advance(4000);
  assert.deepEqual(client.state, { status: "unreachable" });
  page.responses.push(json(alice()));
  await advance(8000);
  assert.deepEqual(client.state, { status: "signed-in" });
  assert.equal(page.requests.length, 3);
});

test("a failed refresh does not make the broker unreachable", async () => {
  const { client } = await signedIn();
  page.responses.push(problem(429, "too_many_requests"));
  await assert.rejects(client.refresh(), { status: 429 });
  assert.deepEqual(client.state, { status: "signed-in" });
});

test("session does not fail with the refresh in flight", async () => {
  const { client } = await signedIn();
  page.responses.push(problem(429, "too_many_requests"), json(alice()));
  const calls = [client.refresh(), client.session(), client.session()];
  await assert.rejects(calls[0], { status: 429 });
  assert.deepEqual([await calls[1], await calls[2]], [alice(), alice()]);
  assert.equal(page.responses.length, 0);
});

test("session returns the state also after a refresh without a session", async () => {
  page.responses = [notSignedIn(), json(nobody)];
  const client = createClient({ prefix: "/bff" });
  const calls = [client.refresh(), client.session()];
  await assert.rejects(calls[0], { code: "not_signed_in" });
  assert.deepEqual(await calls[1], nobody);
});

test("a 401 about an earlier session does not sign the next one out", async () => {
  const { client } = await signedIn();
  const responses = [];
  globalThis.fetch = async (request) => (request.url.endsWith("/bff/session") ? json(alice("s2")) : new Promise((done) => responses.push(done)));
  const calls = [client.fetch("/api/slow"), client.fetch("/api/slow")];
  page.tabs[0].receive("s2"); // another user signed in in another tab
  await settle();
  assert.equal(client.current.session.id, "s2");
  const events = record(client);
  for (const respond of responses) respond(notSignedIn());
  assert.deepEqual((await Promise.all(calls)).map((response) => response.status), [401, 401]);
  await settle();
  assert.deepEqual([events, client.state], [[], { status: "signed-in" }]);
});

test("without events the state is checked before and after the end", async () => {
  const { client } = await signedIn({ events: false });
  page.responses.push(json(alice())); // no activity until then
  await advance(29 * 60_000 + 500);
  assert.equal(page.requests.length, 2);
  assert.deepEqual(client.state, { status: "expiring", seconds: 60, reason: "idle" });
  page.responses.push(json(nobody));
  for (let second = 0; second < 66; second++) await advance(1000);
  assert.deepEqual(client.state, { status: "ended", reason: undefined });
  assert.equal(page.requests.length, 3);
});

test("after the device slept, the state is checked within a minute or so", async () => {
  const { client } = await signedIn({ events: false });
  const now = Date.now;
  mock.method(Date, "now", () => now() + 3_600_000); // timers did not run meanwhile
  page.responses.push(json(nobody));
  await advance(60_500);
  await advance(5000);
  assert.deepEqual([client.state.status, page.requests.length], ["ended", 2]);
});

test("activity before the warning moves it", async () => {
  const { client, states } = await signedIn({ events: false });
  const later = alice();
  later.session.idle_expires_at = "2026-11-01T10:50:00Z";
  page.responses.push(json(later));
  await advance(29 * 60_000 + 500);
  assert.deepEqual([client.state, states, page.requests.length], [{ status: "signed-in" }, [], 2]);
});

test("a clock that is an hour wrong moves no check", async () => {
  for (const hours of [-1, 1]) {
    const broker = new Date(Date.now() + hours * 3_600_000); // the browser's clock is as wrong in the other direction
    const moved = alice();
    for (const time of ["idle_expires_at", "expires_at"]) moved.session[time] = new Date(Date.parse(moved.session[time]) + hours * 3_600_000).toISOString();
    page.requests = [];
    page.responses = [json(moved, 200, "application/json", { Date: broker.toUTCString() })];
    const client = createClient({ prefix: "/bff", events: false });
    await client.session();
    assert.deepEqual(client.state, { status: "signed-in" });
    await advance(29 * 60_000);
    assert.equal(page.requests.length, 1);
    page.responses.push(json(moved, 200, "application/json", { Date: new Date(+broker + 29 * 60_000).toUTCString() }));
    await advance(1500);
    assert.equal(client.state.status, "expiring");
    client.close();
    mock.timers.setTime(Date.parse("2026-11-01T10:00:00Z"));
  }
});

test("focus and online check a state that is older than 5 seconds", async () => {
  const { client } = await signedIn();
  dispatch("focus");
  await advance(5101);
  page.responses.push(json(alice()));
  dispatch("online");
  dispatch("focus");
  await settle();
  assert.equal(page.requests.length, 2);
  document.hidden = true;
  await advance(5101);
  dispatch("visibilitychange");
  assert.equal(page.requests.length, 2);
  client.close();
  document.hidden = false;
  dispatch("focus");
  assert.equal(page.requests.length, 2);
});

for (const type of ["focus", "online", "visibilitychange"]) {
  test(`the event ${type} alone checks the state`, async () => {
    await signedIn();
    await advance(5101);
    page.responses.push(json(alice()));
    dispatch(type);
    await settle();
    assert.equal(page.requests.length, 2);
  });
}

test("a 503 of a call keeps the state, that of the next check does not", async () => {
  const { client } = await signedIn();
  const down = () => problem(503, "store_unavailable");
  page.responses.push(down());
  assert.equal((await client.fetch("/api/orders")).status, 503);
  dispatch("focus"); // less than 5 seconds after the last check
  await settle();
  assert.equal(client.state.status, "signed-in");
  await advance(5101);
  page.responses.push(down());
  dispatch("focus");
  await settle();
  assert.equal(client.state.status, "unreachable");
  assert.equal(client.current.authenticated, true);
  client.close();
});

test("logout tells the other tabs, and not its own listeners", async () => {
  const { client, states } = await signedIn();
  const events = record(client);
  client.logout();
  page.streams[0].send("session-ended", { reason: "logout" });
  assert.deepEqual([events, states], [[], []]);
  page.tabs[0].sent = [];
  dispatch("pagehide");
  assert.deepEqual(page.tabs[0].sent, [null]);
});

test("a logout of one client reaches no listeners of another in the page", async () => {
  const { client } = await signedIn();
  const { client: other, states } = await signedIn();
  const closed = createClient({ prefix: "/bff" });
  closed.close();
  const events = record(other);
  client.logout();
  page.streams[1].send("session-ended", { reason: "logout" });
  assert.deepEqual([events, states], [[], []]);
  page.responses.push(json(nobody), json(nobody));
  await advance(10_000); // the user has cancelled the navigation
  assert.deepEqual([other.state.status, events], ["ended", ["signed-out", "change"]]);
});

test("a client that signs out emits nothing about a 401", async () => {
  page.responses = [notSignedIn()];
  const client = createClient({ prefix: "/bff" });
  const events = record(client);
  client.logout();
  await client.fetch("/api/me");
  assert.deepEqual(events, []);
});

test("a logout that the user cancels leaves a client that works", async () => {
  const { client } = await signedIn();
  client.logout();
  page.responses.push(json(nobody));
  await advance(10_000);
  assert.equal(client.state.status, "ended");
});

test("login in a window resolves when another session starts", async () => {
  const { client } = await signedIn();
  const login = client.login({ window: true, loginHint: "alice" });
  assert.deepEqual(page.opened, ["/bff/login?return_to=%2Forders%23cloakroom-signed-in&login_hint=alice"]);
  assert.deepEqual(page.visited, []);
  let resolved = false;
  login.then(() => (resolved = true));
  const renamed = alice();
  renamed.user.name = "Alicia";
  page.streams[0].send("session-changed", renamed); // the same session
  await settle();
  assert.equal(resolved, false);
  page.responses.push(json(alice("s2")));
  page.tabs[0].receive("s2");
  assert.equal((await login).session.id, "s2");
});

test("login in a window rejects if blocked, and can be cancelled", async () => {
  const { client } = await signedIn();
  page.blocked = true;
  await assert.rejects(client.login({ window: true }), { name: "NotAllowedError" });
  page.blocked = false;
  const cancel = new AbortController();
  const login = client.login({ window: true, signal: cancel.signal });
  cancel.abort();
  assert.equal((await login).session.id, "s1");
  assert.equal((await client.login({ window: true, signal: cancel.signal })).session.id, "s1", "cancelled before");
});

test("the window of a login tells the other tabs and closes itself", async () => {
  globalThis.location.hash = "#cloakroom-signed-in";
  let closed = 0;
  globalThis.close = () => closed++;
  page.responses.push(json(alice("s2")));
  createClient({ prefix: "/bff" });
  await settle();
  assert.deepEqual([page.tabs[0].sent, closed], [["s2"], 1]);
});

test("sessions lists and ends sessions", async () => {
  const { client } = await signedIn();
  const list = [{ id: "s1", device: "Firefox on Linux", current: true }, { id: "a/b", device: "", current: false }];
  page.requests = [];
  page.responses.push(json(list), new Response(null, { status: 204 }), json(alice()), new Response(null, { status: 204 }), problem(404, "not_found"));
  assert.deepEqual(await client.sessions(), list);
  await client.endSession("a/b");
  await client.endOtherSessions();
  assert.deepEqual(
    page.requests.map((r) => `${r.method} ${new URL(r.url).pathname}`),
    ["GET /bff/sessions", "DELETE /bff/sessions/a%2Fb", "GET /bff/session", "DELETE /bff/sessions"],
  );
  await assert.rejects(client.endSession("x"), { status: 404, code: "not_found" });
});

test("close removes listeners, stream, channel and timers", async () => {
  const { client } = await signedIn();
  const events = record(client);
  client.close();
  await advance(24 * 3_600_000);
  await settle();
  assert.deepEqual([page.listeners, page.streams, page.tabs[0].closed, page.requests.length, events], [[], [], true, 1, []]);
});

test("works without BroadcastChannel, Web Locks and EventSource", async () => {
  for (const name of ["BroadcastChannel", "EventSource"]) globalThis[name] = undefined;
  navigator.locks = undefined;
  const { client } = await signedIn();
  page.responses.push(json(nobody));
  await advance(5101);
  dispatch("focus");
  await settle();
  assert.equal(client.state.status, "ended");
  client.close();
});

test("creating a client on a server touches nothing of a browser", async () => {
  for (const name of ["document", "location", "addEventListener", "BroadcastChannel", "EventSource"]) delete globalThis[name];
  const client = createClient();
  assert.deepEqual([client.current, client.state], [undefined, { status: "loading" }]);
  await assert.rejects(client.session(), /location is not defined/);
  client.on("state", () => {});
  client.close();
});

test("ProblemError.from reads any error response", async () => {
  const err = await ProblemError.from(problem(403, "csrf"));
  assert.deepEqual([err.status, err.code, err.message], [403, "csrf", "A title"]);
  assert.equal((await ProblemError.from(new Response("no", { status: 500 }))).message, "Status 500");
});

/** What another script of the origin, or another version of this one, may send. */
function oddMessages() {
  const cyclic = {};
  cyclic.self = cyclic;
  const datas = [undefined, null, 0, 7n, "x", [], {}, cyclic, { authenticated: true }, { authenticated: "yes" }, { authenticated: true, user: cyclic }];
  datas.push({ ...alice(), session: null }, { ...alice(), session: {} }, { ...alice(), session: { id: 1, expires_at: "soon", idle_expires_at: {} } });
  datas.push({ ...alice(), user: null }, { ...nobody, ...alice(), authenticated: false }, { seconds_left: "soon" }, { seconds_left: -1 }, { seconds_left: NaN }, { reason: "" });
  const events = ["changed", "refreshed", "expiring", "ended", "unknown", "__proto__", 7, {}, cyclic];
  const messages = events.flatMap((event) => datas.map((data) => ({ event, data })));
  return [...messages, undefined, 0, 7n, "", "x".repeat(1 << 20), [], ["ended"], {}, cyclic, new Map([["event", "ended"]]), new Date(), new Error("x"), alice()];
}

test("messages that no tab of this version sends change nothing", async () => {
  const { client, states } = await signedIn();
  const events = record(client);
  for (const message of oddMessages()) {
    page.requests = [];
    page.responses = [json(alice())];
    page.tabs[0].receive(message);
    await settle();
    assert.equal(page.requests.length, 1, `requests after ${typeof message} ${String(message?.event)} ${typeof message?.data}`);
    assert.deepEqual([client.current, client.state], [alice(), { status: "signed-in" }]);
  }
  assert.deepEqual([events, states, page.errors], [[], [], []]);
});

test("the reason of another tab is a text", async () => {
  for (const reason of [{}, ["a"], 7, "x".repeat(1 << 20)]) {
    const { client } = await signedIn();
    page.tabs.at(-1).receive({ event: "ended", data: { reason } });
    assert.deepEqual(client.state, { status: "ended", reason: `${reason}` });
    client.close();
  }
});

test("messages and calls at a time cause few requests", async () => {
  const { client } = await signedIn();
  globalThis.fetch = async (request) => {
    page.requests.push(request);
    return json(alice());
  };
  page.requests = [];
  for (let i = 0; i < 1000; i++) page.tabs[0].receive(`session ${i}`);
  await settle();
  assert.equal(page.requests.length, 2); // the second one begins after the last message
  await advance(101);
  await Promise.all(Array.from({ length: 1000 }, () => client.session()));
  assert.equal(page.requests.length, 3);
});

test("a response that is no session state makes the broker unreachable", async () => {
  mock.method(Math, "random", () => 0.5);
  const html = new Response("<!doctype html>", { headers: { "Content-Type": "text/html" } });
  const cut = new Response(new ReadableStream({ start: (body) => body.error(new TypeError("network error")) }));
  const bodies = [null, {}, [], "signed in", 1, { authenticated: "yes" }, { authenticated: true }, { ...alice(), user: undefined }, { ...alice(), session: {} }];
  for (const response of [html, cut, new Response(""), new Response(null, { status: 204 }), ...bodies.map((body) => json(body))]) {
    const { client } = await signedIn();
    await advance(101);
    page.responses.push(response);
    await assert.rejects(client.session());
    assert.deepEqual([client.state, client.current], [{ status: "unreachable" }, alice()]);
    page.responses.push(json(alice())); // it is requested again
    await advance(2000);
    assert.deepEqual([client.state, page.responses], [{ status: "signed-in" }, []]);
    client.close();
  }
});

test("a first response that is no session state is requested again", async () => {
  mock.method(Math, "random", () => 0.5);
  page.responses = [new Response("<!doctype html>"), new Response("<!doctype html>"), json(alice())];
  const client = createClient({ prefix: "/bff" });
  await assert.rejects(client.session());
  assert.deepEqual([client.state, client.current], [{ status: "unreachable" }, undefined]);
  await assert.rejects(client.session(), SyntaxError, "the result of the first request is not kept");
  await advance(4000);
  assert.deepEqual(client.state, { status: "signed-in" });
});

test("a refresh that gets no session state changes nothing", async () => {
  const { client } = await signedIn();
  page.responses.push(new Response("<!doctype html>"));
  await assert.rejects(client.refresh(), SyntaxError);
  assert.deepEqual([client.state, client.current], [{ status: "signed-in" }, alice()]);
  page.responses.push(json(alice()));
  assert.deepEqual(await client.session(), alice());
});

test("a browser that forbids storage, locks or streams has the checks only", async () => {
  const forbidden = () => {
    throw new DOMException("The operation is insecure.", "SecurityError");
  };
  globalThis.BroadcastChannel = class {
    constructor() {
      forbidden();
    }
  };
  for (const request of [async () => forbidden(), undefined]) {
    navigator.locks = request && { request };
    globalThis.EventSource = request ? globalThis.EventSource : undefined;
    const { client } = await signedIn();
    page.responses.push(json(nobody));
    await advance(101);
    await client.session();
    assert.deepEqual(client.state, { status: "ended", reason: undefined });
    client.logout();
    client.close();
    dispatch("pagehide");
  }
  navigator.locks = {};
  assert.deepEqual(page.errors, []);
});

test("a closed client is silent when its page goes", async () => {
  const { client } = await signedIn();
  client.logout();
  client.close();
  dispatch("pagehide");
  await advance(600_000);
  assert.equal(page.requests.length, 1);
});

test("a stream that ends in any way is opened again, one at a time", async () => {
  mock.method(Math, "random", () => 0.5);
  const { client } = await signedIn();
  const ends = [
    (stream) => stream.onerror(), // before it is open
    (stream) => (stream.onopen(), stream.onerror()),
    (stream) => (stream.onerror(), stream.onerror()),
    (stream) => (stream.send("session-ended", { reason: "replaced" }), stream.onerror()),
    (stream) => (stream.send("session-changed", {}), stream.onerror()),
    (stream) => (stream.send("session-expiring", null), stream.onerror()),
    (stream) => (stream.send("session-ended", {}), stream.onerror()),
  ];
  globalThis.fetch = async () => json(alice());
  for (const end of ends) {
    end(page.streams[0]);
    await settle();
    await advance(300_000);
    assert.equal(page.streams.length, 1);
    assert.equal(client.current.authenticated, true);
    page.streams[0].onopen();
  }
  assert.deepEqual(page.errors, []);
});
