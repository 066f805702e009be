// The browser client of Cloakroom: session state, API calls, sign-in and
// sign-out. The tokens stay on the server; this file has no access to them.
//
//   import { createClient } from "/bff/client.js";
//   const client = createClient();
//   const { authenticated, user } = await client.session();
//   const orders = await client.fetch("/api/orders");
//
// The types are in client.d.ts.

/**
 * @typedef {import("./client.d.ts").Session} Session
 * @typedef {import("./client.d.ts").EventName} EventName
 * @typedef {import("./client.d.ts").Listener} Listener
 */

/** An error response of the broker (RFC 9457). Branch on `code`. */
export class ProblemError extends Error {
  /**
   * @param {number} status
   * @param {import("./client.d.ts").Problem} problem the body; empty if the response is not from the broker
   */
  constructor(status, problem = {}) {
    super([problem.title ?? `The response has status ${status}`, problem.detail].filter(Boolean).join(": "));
    this.name = "ProblemError";
    this.status = status;
    this.code = problem.code;
    this.loginUrl = problem.login_url;
    this.requestId = problem.request_id;
  }
}

/**
 * Creates a client. One for each page is enough.
 *
 * @param {import("./client.d.ts").ClientOptions} [options]
 * @returns {import("./client.d.ts").Client}
 */
export function createClient({ prefix = ownPrefix() } = {}) {
  const tabs = new BroadcastChannel(`cloakroom ${prefix}`);
  /** @type {Record<EventName, Set<Listener>>} */
  const listeners = { "signed-in": new Set(), "signed-out": new Set(), change: new Set() };

  /** @type {Session | undefined} the last session state that was received */
  let current;
  let latest = 0; // number of the last request for the state: earlier responses are discarded

  /** @param {Session} session */
  function update(session) {
    const before = current;
    current = session;
    if (JSON.stringify(before) === JSON.stringify(session)) return;
    // The page that is loaded after a logout is the first to notice it.
    if (!before || idOf(session) !== idOf(before)) tabs.postMessage(idOf(session));
    if (session.authenticated && !before?.authenticated) emit("signed-in", session);
    if (!session.authenticated && before?.authenticated) emit("signed-out", session);
    emit("change", session);
  }

  function setSignedOut() {
    latest++; // responses in flight are older
    // The page made a call, so it assumed that the user is signed in.
    if (!current) emit("signed-out", { authenticated: false });
    update({ authenticated: false });
  }

  /**
   * @param {EventName} event
   * @param {Session} session
   */
  function emit(event, session) {
    for (const listener of [...listeners[event]]) {
      try {
        listener(session);
      } catch (err) {
        reportError(err); // must not affect other listeners or the caller
      }
    }
  }

  /**
   * Sends a request to this origin only. `mode` makes the browser enforce that for
   * redirects too.
   *
   * @param {RequestInfo | URL} input
   * @param {RequestInit} [init]
   * @returns {Promise<Response>}
   */
  async function send(input, init) {
    const target = input instanceof Request ? input : new URL(input, document.baseURI);
    const { origin } = new URL(target instanceof Request ? target.url : target);
    if (origin !== location.origin) {
      throw new TypeError(`client.fetch is for ${location.origin} only, not for ${origin}: use the browser's fetch there`);
    }
    const request = new Request(target, { ...init, mode: "same-origin" });
    request.headers.set("X-CSRF", "1");
    const response = await fetch(request);
    if (response.status === 401 && (await problemIn(response.clone())).code === "not_signed_in") setSignedOut();
    return response;
  }

  /**
   * Calls an endpoint of the broker. Throws a ProblemError for an error response.
   *
   * @param {string} path
   * @param {RequestInit} [init]
   * @returns {Promise<any>}
   */
  async function callBroker(path, init) {
    const response = await send(prefix + path, { cache: "no-store", ...init });
    if (!response.ok) throw new ProblemError(response.status, await problemIn(response));
    return response.json();
  }

  /**
   * @param {string} path
   * @param {RequestInit} [init]
   * @returns {Promise<any>}
   */
  async function requestSession(path, init) {
    const number = ++latest;
    const session = await callBroker(path, init);
    if (number === latest) update(session);
    return session;
  }

  const session = () => requestSession("/session");

  /** @param {import("./client.d.ts").LoginOptions} [options] */
  function login({ returnTo = location.pathname + location.search + location.hash, prompt, loginHint, acrValues, maxAge, uiLocales } = {}) {
    const query = new URLSearchParams({ return_to: returnTo });
    const optional = { prompt, login_hint: loginHint, acr_values: acrValues, max_age: maxAge, ui_locales: uiLocales };
    for (const [name, value] of Object.entries(optional)) {
      if (value !== undefined) query.set(name, String(value));
    }
    location.assign(`${prefix}/login?${query}`);
  }

  /**
   * @param {Response} response
   * @returns {import("./client.d.ts").LoginOptions | undefined}
   */
  function challenge(response) {
    const header = response.status === 401 ? (response.headers.get("WWW-Authenticate") ?? "") : "";
    const parameter = (/** @type {string} */ name) => new RegExp(`\\b${name}="?([^",]*)`, "i").exec(header)?.[1];
    if (parameter("error") !== "insufficient_user_authentication") return undefined;
    const [acrValues, maxAge] = [parameter("acr_values"), parameter("max_age")];
    return { ...(acrValues !== undefined && { acrValues }), ...(maxAge !== undefined && { maxAge: Number(maxAge) }) };
  }

  // Each tab sends the id of its session to the others. A tab that receives
  // another id requests the state. So does a page that is restored from the
  // back/forward cache, perhaps after a logout.
  const refreshState = () => void session().catch(() => {}); // the next call reports the error
  tabs.addEventListener("message", ({ data }) => {
    if (data !== idOf(current)) refreshState();
  });
  addEventListener("pageshow", (event) => {
    if (event.persisted) refreshState();
  });

  return {
    session,
    refresh: () => requestSession("/session/refresh", { method: "POST" }),

    fetch(input, { background = false, ...init } = {}) {
      const headers = new Headers(init.headers ?? (input instanceof Request ? input.headers : undefined));
      if (background) headers.set("X-Background", "1"); // does not count as activity
      return send(input, { ...init, headers });
    },

    login,

    silentLogin({ timeout = 10_000 } = {}) {
      return new Promise((resolve) => {
        const frame = document.createElement("iframe");
        frame.hidden = true;
        frame.src = `${prefix}/silent-login`;
        /** @param {MessageEvent} event */
        const onMessage = ({ origin, source, data }) => {
          if (origin === location.origin && source === frame.contentWindow && data?.type === "cloakroom:silent-login") finish(data.authenticated === true);
        };
        const timer = setTimeout(() => finish(false), timeout); // the provider may show an error page
        /** @param {boolean} authenticated */
        const finish = (authenticated) => {
          clearTimeout(timer);
          removeEventListener("message", onMessage);
          frame.remove();
          if (!authenticated) return resolve(false);
          session().then(() => resolve(true), () => resolve(true)); // notifies listeners
        };
        addEventListener("message", onMessage);
        document.body.append(frame);
      });
    },

    stepUp(response, options) {
      const required = challenge(response);
      if (required) login({ ...options, ...required });
      return required !== undefined;
    },

    challenge,

    logout({ returnTo = "/" } = {}) {
      // A form, not fetch: the browser follows the redirect to the provider and
      // shows error pages.
      const form = document.createElement("form");
      form.method = "POST";
      form.action = `${prefix}/logout`;
      const field = document.createElement("input");
      field.type = "hidden";
      field.name = "return_to";
      field.value = returnTo;
      form.append(field);
      document.body.append(form);
      form.submit();
    },

    on(event, listener) {
      const all = listeners[event];
      if (!all) throw new TypeError(`there is no event ${event}, only ${Object.keys(listeners).join(", ")}`);
      all.add(listener);
      return () => void all.delete(listener);
    },
  };
}

/** @param {Session | undefined} session */
const idOf = (session) => session?.session?.id ?? null;

/**
 * Returns the prefix that this file was loaded from, or the default in a bundle.
 *
 * @returns {string}
 */
function ownPrefix() {
  const { pathname } = new URL(import.meta.url);
  return pathname.endsWith("/client.js") ? pathname.slice(0, -"/client.js".length) : "/bff";
}

/**
 * @param {Response} response
 * @returns {Promise<import("./client.d.ts").Problem>} empty unless the response is problem+json
 */
async function problemIn(response) {
  if (!response.headers.get("Content-Type")?.startsWith("application/problem+json")) return {};
  try {
    return (await response.json()) ?? {};
  } catch {
    return {};
  }
}
