// The sample app: what your app would do. It also shows what happens behind it.
import { createClient, ProblemError } from "/bff/client.js";

/** @param {string} id */
const $ = (id) => document.getElementById(id);

// All responses, for the last section. The client uses this fetch.
const received = [];
const browserFetch = window.fetch;
window.fetch = async (...request) => {
  const response = await browserFetch(...request);
  received.push(response.clone().text().then((body) => JSON.stringify([...response.headers]) + body, () => ""));
  return response;
};

const client = createClient();

// Who is signed in

client.on("change", show);
client.on("signed-out", () => {
  $("signed-out-notice").hidden = false;
});
client.on("signed-in", () => {
  $("signed-out-notice").hidden = true;
});

/** @param {import("/bff/client.js").Session} session */
function show({ authenticated, user, session }) {
  document.body.dataset.state = authenticated ? "signed-in" : "signed-out";
  $("signed-in").hidden = $("sign-out").hidden = !authenticated;
  $("signed-out").hidden = authenticated;
  if (!authenticated) {
    expires = undefined;
    $("keep-calling").checked = false;
    return;
  }
  $("ticket-number").textContent = session.id.replace(/[^0-9a-z]/gi, "").slice(-4).toUpperCase();
  $("user-name").textContent = user.name ?? user.preferred_username ?? user.sub;
  $("user-email").textContent = user.email ?? "";
  $("claims").replaceChildren(
    ...Object.entries(user).flatMap(([name, value]) => [
      element("dt", name),
      element("dd", typeof value === "string" ? value : JSON.stringify(value)),
    ]),
  );
  showExpiry(session.access_token_expires_at);
}

$("sign-in").onclick = $("sign-in-again").onclick = () => client.login();
$("sign-out").onclick = () => client.logout();

// How long the access token is valid. That is part of the session state. The page never gets the token.

let expires; // in milliseconds, undefined if unknown
let span = 0; // the start of the countdown
let refreshes = 0;

/** @param {string | null} rfc3339 */
function showExpiry(rfc3339) {
  const before = expires;
  expires = rfc3339 ? Date.parse(rfc3339) : undefined;
  $("token-countdown").dataset.expiresAt = rfc3339 ?? "";
  if (expires !== before) span = expires - Date.now();
  if (before !== undefined && expires > before) {
    refreshes++;
    note(`Refreshed at ${new Date().toLocaleTimeString()}. The page did nothing.`);
    $("signed-in").animate?.([{ opacity: 0.75 }, { opacity: 1 }], { duration: calm() ? 0 : 500 });
  }
  tick();
}

/** @param {string} text shown once, not with every tick */
function note(text) {
  if ($("refresh-note").textContent !== text) $("refresh-note").textContent = text;
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function tick() {
  if (expires === undefined) {
    $("token-countdown").textContent = "–:––";
    $("token-bar").style.scale = "0 1";
    return;
  }
  const left = Math.max(0, expires - Date.now());
  const seconds = Math.ceil(left / 1000);
  $("token-countdown").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  $("token-bar").style.scale = `${span > 0 ? Math.min(1, left / span) : 0} 1`;
  if (left === 0) note("Expired. The next call refreshes it.");
}
setInterval(tick, 250);

$("refresh-now").onclick = () =>
  attempt($("refresh-now"), async () => {
    await client.refresh();
    note(`Refreshed at ${new Date().toLocaleTimeString()}, because you asked.`);
  });

// Calls

for (const button of document.querySelectorAll("button[data-path]")) {
  button.onclick = () => attempt(button, () => call(button.dataset.path));
}

/**
 * Calls the API, shows the response, and checks whether the broker refreshed the token.
 *
 * @param {string} path
 */
async function call(path) {
  const began = performance.now();
  const response = await client.fetch(path);
  const took = Math.round(performance.now() - began);
  showResponse(path, response.status, took, await response.text());
  if (document.body.dataset.state === "signed-in") await client.session();
  return response;
}

/**
 * @param {string} path
 * @param {number} status
 * @param {number} took in milliseconds
 * @param {string} body
 */
function showResponse(path, status, took, body) {
  let text = body;
  let problem = {};
  try {
    problem = JSON.parse(body);
    text = JSON.stringify(problem, null, 2);
  } catch {
    // not JSON: shown unchanged
  }
  const head = element("p", "", { className: "response-head" });
  head.append(
    element("span", String(status), { className: "status" }),
    element("code", `GET ${path}`),
    element("span", `${took} ms`, { className: "aside" }),
  );
  const result = $("result");
  result.ariaLive = $("keep-calling").checked ? "off" : "polite"; // not an announcement every second
  result.dataset.status = String(status);
  result.dataset.path = path;
  result.dataset.kind = String(status)[0];
  result.replaceChildren(head, element("p", inWords(status, problem), { className: "words" }), element("pre", text, { tabIndex: 0 }));
}

/**
 * @param {number} status
 * @param {{ code?: string, error?: string }} problem
 */
function inWords(status, { code, error }) {
  if (status < 300) return "Success.";
  if (code === "not_signed_in") return "Not signed in. The broker did not call the API.";
  if (status === 403) return `The API refused: ${error ?? code ?? "you may not"}. You are still signed in.`;
  if (status === 503) return "Not available right now. You are still signed in.";
  return "That did not work.";
}

let calling; // the timer of keep-calling
const tally = { calls: 0, failures: 0, refreshes: 0 };

$("keep-calling").onchange = () => {
  clearTimeout(calling);
  if (!$("keep-calling").checked) return;
  Object.assign(tally, { calls: 0, failures: 0, refreshes });
  const next = async () => {
    try {
      const response = await call("/api/me");
      tally.failures += response.ok ? 0 : 1;
    } catch (err) {
      tally.failures++;
      showTrouble(err);
    }
    tally.calls++;
    showTally();
    if ($("keep-calling").checked) calling = setTimeout(next, 1000);
  };
  next();
};

function showTally() {
  const { calls, failures } = tally;
  const since = refreshes - tally.refreshes;
  Object.assign($("tally").dataset, { calls, failures, refreshes: since });
  $("tally").hidden = false;
  $("tally").textContent =
    `${count(calls, "call")}, ${failures === 0 ? "each successful" : `${failures} failed`}; ${count(since, "refresh", "refreshes")} meanwhile.`;
}

// What JavaScript can see

$("look").onclick = () =>
  attempt($("look"), async () => {
    const bodies = await Promise.all(received);
    const places = [
      ["document.cookie", document.cookie],
      ["localStorage", JSON.stringify({ ...localStorage })],
      ["sessionStorage", JSON.stringify({ ...sessionStorage })],
      ["IndexedDB", JSON.stringify((await indexedDB.databases()).map((db) => db.name))],
      ["The address bar and history", location.href + JSON.stringify(history.state)],
      [`${count(bodies.length, "response")} so far, with headers`, bodies.join("\n")],
    ];
    const empty = ["", "{}", "[]"];
    const list = element("ul", "", { className: "places" });
    let found = 0;
    for (const [place, text] of places) {
      const token = tokenIn(text);
      if (token) found++;
      const item = element("li", "", { className: token ? "found" : "clean" });
      item.append(element("span", place), element("span", token ? `contains ${token}` : empty.includes(text) ? "empty" : `no token in ${count(text.length, "character")}`));
      list.append(item);
    }
    const verdict = found
      ? `There is something that looks like a token in ${count(found, "place")}. That should not happen.`
      : "Nothing. There is no token that a script could steal.";
    $("look-result").dataset.verdict = found ? "found" : "clean";
    $("look-result").replaceChildren(element("p", verdict, { className: "verdict" }), list);
  });

/**
 * Returns what looks like a token in a text: a JWS, a JWE, or a member with the name of a token.
 *
 * @param {string} text
 */
function tokenIn(text) {
  if (/eyJ[\w-]{5,}\.[\w-]*\.[\w-]*/.test(text)) return "a JWT";
  return text.match(/(access|refresh|id)_token(?=\W{1,4}[\w-]{8})/)?.[0];
}

// Helpers

/**
 * Runs the action of a button, which is busy meanwhile, and shows an error.
 *
 * @param {HTMLButtonElement} button
 * @param {() => Promise<unknown>} action
 */
async function attempt(button, action) {
  if (button.ariaBusy === "true") return;
  button.ariaBusy = "true"; // not disabled: that would take the focus away
  $("trouble").hidden = true;
  try {
    await action();
  } catch (err) {
    showTrouble(err);
  } finally {
    button.ariaBusy = "false";
  }
}

/** @param {unknown} err */
function showTrouble(err) {
  if (err instanceof ProblemError && err.code === "not_signed_in") return; // the notice is shown already
  const help = err instanceof ProblemError && err.requestId ? ` (${err.code}, request ${err.requestId})` : "";
  $("trouble").textContent = err instanceof ProblemError ? err.message + help : `The broker cannot be reached: ${err.message}`;
  $("trouble").hidden = false;
}

/**
 * @param {string} name
 * @param {string} text
 * @param {object} [properties]
 */
function element(name, text, properties) {
  return Object.assign(document.createElement(name), { textContent: text }, properties);
}

/**
 * @param {number} n
 * @param {string} one
 * @param {string} [many]
 */
function count(n, one, many = `${one}s`) {
  return `${n} ${n === 1 ? one : many}`;
}

client.session().catch((err) => {
  showTrouble(err);
  show({ authenticated: false });
});
