/* eslint-disable -- this file is copied into apps, whose rules differ */
// The browser client of Cloakroom: session state, API calls, sign-in and
// sign-out. The tokens stay on the server; this file has no access to them.
// client.d.ts has the types and describes every option.

// The broker serves this file with import.meta.url here: it is beside the
// endpoints then. In an app there is none, for Jest refuses import.meta.
const served = "";

// Where a window that login opened ends: the app, which closes it there.
const windowEnd = "#cloakroom-signed-in";

/** An error response of the broker (RFC 9457). Branch on `code`. */
export class ProblemError extends Error {
  /** @override */
  name = "ProblemError";

  /**
   * @param {number} status
   * @param {import("./client.d.ts").Problem} problem the body; empty if the response is not from the broker
   */
  constructor(status, problem = {}) {
    super((problem.title ?? `Status ${status}`) + (problem.detail ? `: ${problem.detail}` : ""));
    this.status = status;
    this.code = problem.code;
    this.loginUrl = problem.login_url;
    this.requestId = problem.request_id;
  }

  /** @param {Response} response */
  static async from(response) {
    return new ProblemError(response.status, await problemIn(response));
  }
}

/** @type {typeof import("./client.d.ts").createClient<any>} */
export function createClient({ prefix = ownPrefix(), events = true, warn = 60 } = {}) {
  /**
   * @typedef {import("./client.d.ts").Session<any>} Session
   * @typedef {import("./client.d.ts").State} State
   * @typedef {import("./client.d.ts").EventName | "state"} Event
   */
  const page = globalThis.document; // undefined while a server renders
  const name = `cloakroom ${prefix}`;
  /** @type {BroadcastChannel | undefined} */
  let tabs;
  try {
    if (page) tabs = new BroadcastChannel(name);
  } catch {} // a browser without it, or that forbids the site to store anything
  const closing = new AbortController();

  /** @type {Record<Event, Set<(value: any) => void>>} */
  const listeners = { "signed-in": new Set(), "signed-out": new Set(), change: new Set(), state: new Set() };

  /** @type {Session | undefined} the last session state that was received */
  let current;
  /** @type {State} */
  let state = { status: "loading" };
  /** @type {State} the state while no user is signed in */
  let out = { status: "signed-out" };
  let stopped = !page; // also after close, and at logout, so that no listener of signed-out navigates elsewhere

  /** @type {Promise<Session>} the result of a request that callers share */
  let shared;
  let sharedUntil = 0; // by performance.now; Infinity while the request is in flight
  let refreshing = false; // the shared request is a refresh, which can fail although the state is known
  let latest = 0; // number of the last request for the state: earlier responses are discarded
  let failures = 0;
  /** @type {Promise<void> | undefined} the check in flight */
  let checking;
  let again = false; // another check follows it

  let skew = 0; // the clock of the broker minus that of the browser, in milliseconds
  let end = 0; // when the session ends, by the clock of the broker
  let longest = 0; // the longest time to the end so far
  let warned = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} of the next check or second */
  let timer;
  /** @type {AbortController | undefined} set while this tab has the event stream or waits for it */
  let following;

  /**
   * @param {Session} session
   * @param {string} [reason] why it ended
   */
  function update(session, reason) {
    if (stopped) return;
    failures = 0;
    const before = current;
    const changed = !same(before, session);
    if (changed) current = session;
    if (session.authenticated) {
      out = { status: "signed-out" };
      follow();
    } else if (before?.authenticated || reason) {
      out = { status: "ended", reason };
    }
    schedule();
    if (!changed) return;
    // The page that is loaded after a logout is the first to notice it.
    if (!before || idOf(session) !== idOf(before)) tabs?.postMessage(idOf(session));
    if (session.authenticated !== !!before?.authenticated) emit(session.authenticated ? "signed-in" : "signed-out", session);
    emit("change", session);
  }

  /**
   * Updates the state to what is newer than responses in flight.
   *
   * @param {Session} session
   * @param {string} [reason]
   */
  function learn(session, reason) {
    latest++;
    sharedUntil = 0;
    update(session, reason);
  }

  /** @param {State} next */
  function setState(next) {
    if (same(state, next)) return;
    state = next;
    emit("state", state);
  }

  /**
   * @param {Event} event
   * @param {Session | State} value
   */
  function emit(event, value) {
    if (stopped) return;
    for (const listener of [...listeners[event]]) {
      try {
        listener(value);
      } catch (err) {
        reportError(err); // must not affect other listeners or the caller
      }
    }
  }

  // Derives the state from the session's end, and schedules the next check: when
  // the warning is due, and after the end. While the session expires, it counts
  // the seconds. Timers stand still while the device sleeps: each minute it looks
  // at the clock.
  function schedule() {
    clearTimeout(timer);
    if (!current?.authenticated) return setState(out);
    const life = Date.parse(current.session.expires_at);
    const sooner = Math.min(Date.parse(current.session.idle_expires_at), life);
    if (sooner !== end) {
      end = sooner;
      warned = false;
    }
    const left = end - Date.now() - skew;
    longest = Math.max(longest, left);
    const untilWarning = left - Math.min(warn * 1000, longest / 2);
    warned ||= untilWarning <= 0;
    if (left > 0 && warned) {
      timer = setTimeout(schedule, 1000);
      setState({ status: "expiring", seconds: Math.ceil(left / 1000), reason: end === life ? "lifetime" : "idle" });
    } else {
      timer = setTimeout(untilWarning > 60_000 ? schedule : check, left > 0 ? Math.min(untilWarning, 60_000) + 500 : 5000);
      if (left > 0 || state.status !== "expiring") setState({ status: "signed-in" });
    }
  }

  // One tab of the browser has the event stream and passes its events on. Without
  // Web Locks every tab has its own. Without a stream there are only the checks.
  function follow() {
    if (following || !events) return;
    const { signal } = (following = new AbortController());
    /** @param {(done: (value: any) => void) => void} start */
    const wait = (start) =>
      new Promise((done) => {
        signal.onabort = done;
        start(done);
      });
    /** @type {(lock?: Lock | null | void) => Promise<void>} */
    const lead = async (lock) => {
      // Another tab has the lock. It can release it before its message that the
      // session has ended arrives. A stream would be an error then.
      if (lock === null) return navigator.locks.request(name, { signal }, () => check().then(lead));
      for (let failed = 0; !signal.aborted; ) {
        if (!current?.authenticated) return unfollow();
        const source = new EventSource(`${prefix}/session/events?warn=${warn}`);
        source.onopen = () => (failed = 0);
        for (const event of ["changed", "refreshed", "expiring", "ended"]) {
          source.addEventListener(`session-${event}`, ({ data }) => {
            const message = { event, data: JSON.parse(data) };
            tabs?.postMessage(message);
            receive(message);
          });
        }
        await wait((done) => (source.onerror = done));
        source.close(); // the browser would not retry after an error response
        if (!signal.aborted) await wait((done) => setTimeout(done, backoff(failed++)));
        if (!signal.aborted) await check();
      }
    };
    // A browser without EventSource has only the checks, too.
    (navigator.locks?.request(name, { ifAvailable: true }, lead) ?? lead()).catch(() => {});
  }

  function unfollow() {
    following = /** @type {undefined} */ (following?.abort());
  }

  /**
   * Applies an event of the stream. Another tab may have sent it, with another
   * version of this file: what is not understood causes a request.
   *
   * @param {{ event?: string, data?: any }} message
   */
  function receive({ event, data }) {
    const reason = data?.reason;
    if (event === "ended" && reason && reason !== "replaced") {
      unfollow();
      learn({ authenticated: false }, `${reason}`);
    } else if (data?.seconds_left > 0) {
      if (!current?.authenticated) return;
      skew = end - data.seconds_left * 1000 - Date.now();
      warned = true;
      schedule();
    } else if (isSession(data)) {
      learn(data);
    } else {
      check();
    }
  }

  /**
   * Sends a request to this origin only. `mode` makes the browser enforce that for
   * redirects too.
   *
   * @param {RequestInfo | URL} input
   * @param {import("./client.d.ts").FetchOptions} [init]
   * @returns {Promise<Response>}
   */
  async function send(input, { background, ...init } = {}) {
    const request = new Request(input instanceof Request ? input : new URL(input, page?.baseURI ?? location.origin), { ...init, mode: "same-origin" });
    if (new URL(request.url).origin !== location.origin) throw new TypeError(`not same-origin: ${request.url}`);
    request.headers.set("X-CSRF", "1");
    if (background) request.headers.set("X-Background", "1"); // does not count as activity
    const before = idOf(current);
    const response = await fetch(request);
    if (response.status === 401 && (await problemIn(response.clone())).code === "not_signed_in") {
      if (current?.authenticated && idOf(current) !== before) {
        check(); // the response may be about the session before
        return response;
      }
      // The page made a call, so it assumed that the user is signed in.
      if (!current) emit("signed-out", { authenticated: false });
      learn({ authenticated: false });
    }
    return response;
  }

  /**
   * Calls an endpoint of the broker. Throws a ProblemError for an error response.
   *
   * @param {string} path
   * @param {RequestInit} [init]
   * @returns {Promise<Response>}
   */
  async function callBroker(path, init) {
    const response = await send(prefix + path, init);
    if (!response.ok) throw await ProblemError.from(response);
    return response;
  }

  /**
   * Requests the state, or returns the result of a request that was just made.
   *
   * @param {boolean} [fresh] make a request in any case
   * @param {string} [path]
   * @param {RequestInit} [init]
   * @returns {Promise<Session>}
   */
  function session(fresh, path = "/session", init) {
    if (!fresh && performance.now() < sharedUntil) return refreshing ? shared.catch(() => session()) : shared;
    const number = ++latest;
    refreshing = !!init;
    sharedUntil = Infinity;
    return (shared = callBroker(path, { signal: AbortSignal.timeout(10_000), ...init }).then(async (response) => {
      const session = await response.json();
      if (!isSession(session)) throw await ProblemError.from(response);
      if (number !== latest) return current ?? session;
      sharedUntil = performance.now() + 100;
      skew = Date.parse(/** @type {string} */ (response.headers.get("Date"))) - Date.now() || 0;
      update(session);
      return session;
    }).catch((err) => {
      if (number === latest) {
        sharedUntil = 0;
        if (!init && !stopped) {
          setState({ status: "unreachable" });
          clearTimeout(timer);
          timer = setTimeout(check, backoff(failures++));
        }
      }
      throw err;
    }));
  }

  /**
   * Requests the state. Calls during a request cause one more, after it. Never
   * rejects: the state reports the error.
   *
   * @returns {Promise<void>}
   */
  function check() {
    again = true;
    return (checking ??= (async () => {
      for (; again; await session(true).catch(() => {})) again = false;
      checking = undefined;
    })());
  }

  /**
   * Appends a new element to the page.
   *
   * @param {string} name
   * @param {object} properties
   * @returns {any}
   */
  function append(name, properties) {
    const element = Object.assign(page.createElement(name), properties);
    page.body.append(element);
    return element;
  }

  /** @param {any} [options] @returns {any} */
  function login(options = {}) {
    const { window: inWindow, signal, returnTo = location.pathname + (inWindow ? windowEnd : location.search + location.hash) } = options;
    const query = new URLSearchParams({ return_to: returnTo });
    for (const option of ["prompt", "loginHint", "acrValues", "maxAge", "uiLocales"]) {
      const value = options[option];
      if (value != null) query.set(option.replace(/[A-Z]/, "_$&").toLowerCase(), value);
    }
    const url = `${prefix}/login?${query}`;
    if (!inWindow) return location.assign(url);
    if (signal?.aborted) return session();
    return new Promise((done) => {
      // The handle only tells whether the window was blocked. The provider's page
      // is in another browsing context group (Cross-Origin-Opener-Policy), so the
      // handle says closed from then on.
      if (!open(url, "_blank", "popup,width=500,height=700")) throw new DOMException("window blocked", "NotAllowedError");
      const before = idOf(current);
      const finish = () => {
        off();
        done(session());
      };
      const off = on("change", (now) => now.authenticated && idOf(now) !== before && finish());
      signal?.addEventListener("abort", finish);
    });
  }

  /** @param {import("./client.d.ts").ResponseHead} response */
  function challenge(response) {
    const header = /** @type {string} */ (response.headers.get("WWW-Authenticate")); // exec takes null as a text
    const parameter = (/** @type {string} */ name) => RegExp(`\\b${name}="?([^",]*)`, "i").exec(header)?.[1];
    if (response.status !== 401 || parameter("error") !== "insufficient_user_authentication") return undefined;
    const acrValues = parameter("acr_values");
    const maxAge = parameter("max_age");
    return { ...(acrValues && { acrValues }), ...(maxAge && { maxAge: +maxAge }) };
  }

  /**
   * @param {Event} event
   * @param {(value: any) => void} listener
   */
  function on(event, listener) {
    const added = (/** @type {any} */ value) => listener(value); // another function for each call of on
    listeners[event].add(added);
    return () => void listeners[event].delete(added);
  }

  if (page) {
    // Each tab sends the id of its session to the others, and events. A tab that
    // receives another id requests the state.
    tabs?.addEventListener("message", ({ data }) => {
      if (data !== idOf(current)) receive(data ?? {});
    });
    // Not before the first call of the app.
    for (const type of ["focus", "online", "visibilitychange"]) {
      addEventListener(type, () => !page.hidden && latest && performance.now() > sharedUntil + 5000 && check(), closing);
    }
    // A page with a lock or a stream cannot be in the back/forward cache. One that
    // is restored from there may have been signed out meanwhile. If it signed out
    // itself, it still shows what the user saw, also without a network. When it
    // goes, the session has ended.
    addEventListener(
      "pagehide",
      () => {
        if (stopped) tabs?.postMessage(null);
        unfollow();
      },
      closing,
    );
    addEventListener("pageshow", ({ persisted }) => persisted && (stopped ? location.reload() : check()), closing);
    // No listener of signed-out may navigate elsewhere while a client of this page
    // signs out, unless the navigation was cancelled.
    addEventListener(
      name,
      () => {
        stopped = true;
        setTimeout(() => {
          stopped = closing.signal.aborted;
          if (!stopped) check();
        }, 10_000);
      },
      closing,
    );
    if (location.hash === windowEnd) check().then(() => close());
  }

  return {
    get current() {
      return current;
    },
    get state() {
      return state;
    },
    session: (fresh) => session(fresh),

    refresh: () => session(true, "/session/refresh", { method: "POST" }),

    fetch: send,
    login,

    async silentLogin({ timeout = 10_000 } = {}) {
      const frame = append("iframe", { hidden: true, src: `${prefix}/silent-login` });
      const finished = new AbortController();
      const authenticated = await new Promise((done) => {
        setTimeout(done, timeout, false); // the provider may show an error page
        addEventListener(
          "message",
          ({ origin, source, data }) => {
            if (origin === location.origin && source === frame.contentWindow && data?.type === "cloakroom:silent-login") done(data.authenticated === true);
          },
          finished,
        );
      });
      finished.abort();
      frame.remove();
      if (authenticated) await check(); // notifies listeners
      return authenticated;
    },

    stepUp(response, options) {
      const required = challenge(response);
      if (required) login({ ...options, ...required });
      return !!required;
    },

    challenge,

    logout({ returnTo = "/" } = {}) {
      dispatchEvent(new Event(name)); // to all clients of this page
      // A form, not fetch: the browser follows the redirect to the provider and
      // shows error pages.
      append("form", { method: "POST", action: `${prefix}/logout?${new URLSearchParams({ return_to: returnTo })}` }).submit();
    },

    sessions: () => callBroker("/sessions").then((response) => response.json()),

    // It may be the session of this client, so that is checked.
    endSession: (id) => callBroker(`/sessions/${encodeURIComponent(id)}`, { method: "DELETE" }).then(check),

    endOtherSessions: () => callBroker("/sessions", { method: "DELETE" }).then(() => {}),

    on,

    close() {
      stopped = true;
      closing.abort();
      unfollow();
      clearTimeout(timer);
      tabs?.close();
    },
  };
}

/**
 * Reports whether a value has the form of a session state.
 *
 * @param {any} value
 */
const isSession = (value) =>
  value?.authenticated === !!(value?.user && Date.parse(value.session?.idle_expires_at) + Date.parse(value.session?.expires_at));

/** @param {import("./client.d.ts").Session<any> | undefined} session */
const idOf = (session) => session?.session?.id ?? null;

/** @param {unknown} a @param {unknown} b */
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/**
 * Returns the time to the next attempt, in milliseconds: 1 to 3 seconds, then
 * twice as long each time, up to about 5 minutes.
 *
 * @param {number} failures
 */
const backoff = (failures) => Math.min(2000 * 2 ** failures, 300_000) * (0.5 + Math.random());

/** Returns the prefix beside which the broker served this file, or else that of the base element. */
function ownPrefix() {
  if (served) return new URL(served).pathname.replace(/\/[^/]*$/, "");
  const base = globalThis.document?.querySelector("base")?.href;
  // Two slashes at the start would name a host: the path of the page may have them.
  return base ? new URL("bff", base).pathname.replace(/^\/+/, "/") : "/bff";
}

/**
 * @param {Response} response
 * @returns {Promise<import("./client.d.ts").Problem>} empty unless the response is problem+json
 */
const problemIn = async (response) =>
  (response.headers.get("Content-Type")?.includes("problem+json") && (await response.json().catch(() => {}))) || {};
