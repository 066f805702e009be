// A client for tests of components, and the sign-in for tests in a browser. See
// testing.d.ts.

/** @type {typeof import("./testing.d.ts").mockClient<any>} */
export function mockClient({ user, state: initial, fetch: respond = () => new Response(null, { status: 404 }), sessions = [] } = {}) {
  /**
   * @typedef {import("./client.d.ts").Session<any>} Session
   * @typedef {import("./client.d.ts").State} State
   * @typedef {import("./client.d.ts").EventName | "state"} Event
   */
  /** @type {Record<Event, Set<(value: any) => void>>} */
  const listeners = { "signed-in": new Set(), "signed-out": new Set(), change: new Set(), state: new Set() };
  /** @type {(user: any) => Session} */
  const sessionOf = (user) => {
    const time = (/** @type {number} */ minutes) => new Date(Date.now() + minutes * 60_000).toISOString();
    const times = { created_at: time(0), idle_expires_at: time(30), expires_at: time(480), access_token_expires_at: time(5) };
    return { authenticated: true, user, session: { id: `mock-${++logins}`, ...times } };
  };
  let logins = 0;
  /** @type {Session} */
  let current = user ? sessionOf(user) : { authenticated: false };
  /** @type {State} */
  let state = initial ?? { status: user ? "signed-in" : "signed-out" };

  /**
   * @param {Session} next
   * @param {State} nextState
   */
  function set(next, nextState) {
    const before = current;
    [current, state] = [next, nextState];
    const emit = (/** @type {Event} */ event, /** @type {unknown} */ value) => [...listeners[event]].forEach((listener) => listener(value));
    emit("state", state);
    if (before === next) return;
    if (next.authenticated && !before.authenticated) emit("signed-in", next);
    if (!next.authenticated && before.authenticated) emit("signed-out", next);
    emit("change", next);
  }

  const signIn = (/** @type {any} */ user) => set(sessionOf(user), { status: "signed-in" });
  const signOut = (/** @type {string | undefined} */ reason) => set({ authenticated: false }, { status: "ended", reason });

  const session = async () => {
    if (state.status === "unreachable") throw new TypeError("Failed to fetch");
    if (state.status === "loading") await new Promise(() => {});
    return current;
  };

  return {
    get current() {
      return state.status === "loading" ? undefined : current;
    },
    get state() {
      return state;
    },
    session,
    refresh: session,
    async fetch(input, { background, ...init } = {}) {
      const request = new Request(input instanceof Request ? input : new URL(input, "http://localhost"), init);
      request.headers.set("X-CSRF", "1");
      if (background) request.headers.set("X-Background", "1");
      return respond(request);
    },
    /** @returns {any} */
    login(options) {
      signIn(user ?? { sub: "alice", name: "Alice" });
      return options?.window ? Promise.resolve(current) : undefined;
    },
    silentLogin: async () => current.authenticated,
    challenge: () => undefined,
    stepUp: () => false,
    logout() {
      signOut("logout");
    },
    sessions: async () => sessions,
    async endSession(id) {
      sessions = sessions.filter((session) => session.id !== id);
    },
    async endOtherSessions() {
      sessions = sessions.filter((session) => session.current);
    },
    on(event, /** @type {(value: any) => void} */ listener) {
      const added = (/** @type {any} */ value) => listener(value);
      listeners[event].add(added);
      return () => void listeners[event].delete(added);
    },
    close() {},

    signIn,
    signOut,
    expire(seconds, reason = "idle") {
      set(current, { status: "expiring", seconds, reason });
    },
    unreachable() {
      set(current, { status: "unreachable" });
    },
  };
}

/** @type {typeof import("./testing.d.ts").signIn} */
export async function signIn(page, claims, { returnTo = "/", prefix = "/bff" } = {}) {
  // Without a page that is loaded, Playwright's baseURL applies.
  const absolute = (/** @type {string} */ path) => (page.url().startsWith("http") ? new URL(path, page.url()).href : path);
  const data = { ...(typeof claims === "string" ? { user: claims } : { claims }), return_to: returnTo };
  const response = await page.request.post(absolute(`${prefix}/dev/sign-in`), { headers: { "X-CSRF": "1" }, data });
  if (response.status() === 404) throw new Error(`${response.url()} does not exist: only cloakroom dev and cloakroom demo have it`);
  const body = /** @type {{ login_url: string, title?: string, detail?: string }} */ (await response.json());
  if (response.status() !== 200) throw new Error(`sign in: status ${response.status()}: ${body.detail ?? body.title}`);
  await page.goto(absolute(body.login_url));
}
