// The notice of the guards after a session has ended. See notice.d.ts.

/** @import { Client, Session } from "./client.d.ts" */

const texts = {
  en: {
    title: "You were signed out.",
    idle: "You were not active for a while.",
    lifetime: "The session has reached its maximum duration.",
    logout: "You signed out in another tab or window.",
    revoked: "The session was ended from another device.",
    limit: "You signed in on another device.",
    provider: "You signed out in another app.",
    kept: "This page is kept.",
    signIn: "Sign in again",
  },
  de: {
    title: "Sie wurden abgemeldet.",
    idle: "Sie waren eine Weile nicht aktiv.",
    lifetime: "Die Sitzung hat ihre Höchstdauer erreicht.",
    logout: "Sie haben sich in einem anderen Tab oder Fenster abgemeldet.",
    revoked: "Die Sitzung wurde von einem anderen Gerät aus beendet.",
    limit: "Sie haben sich auf einem anderen Gerät angemeldet.",
    provider: "Sie haben sich in einer anderen App abgemeldet.",
    kept: "Diese Seite bleibt erhalten.",
    signIn: "Erneut anmelden",
  },
};

/** @type {(client: Client<any>) => () => void} */
export function signInNotice(client) {
  let user = client.current?.user?.sub;
  /** @type {ReturnType<typeof open> | undefined} */
  let notice;
  const update = () => {
    const { current, state } = client;
    if (current?.authenticated) {
      const { sub } = current.user;
      if (user !== undefined && sub !== user) window.location.reload(); // nothing of the other user may stay
      else close();
      user = sub;
    } else if (state.status === "ended") {
      (notice ??= open(client)).explain(state.reason); // it may be known later than the end
    }
  };
  const close = () => {
    notice?.dialog.close?.(); // the focus returns to where it was; jsdom has no such method
    notice?.dialog.remove();
    notice = undefined;
  };
  const off = [client.on("change", update), client.on("state", update)];
  update();
  return () => {
    off.forEach((remove) => remove());
    close();
  };
}

/**
 * Covers the page with a modal dialog: the next person at the screen neither
 * sees nor uses what is below.
 *
 * @param {Client<any>} client
 */
function open(client) {
  const language = (document.documentElement.lang || navigator.language).startsWith("de") ? "de" : "en";
  const text = texts[language];
  const dialog = document.createElement("dialog");
  // The language of the notice may not be that of the page.
  Object.assign(dialog, { lang: language, dir: "ltr" });
  const title = append(dialog, "h2", text.title);
  const why = append(dialog, "p", "");
  why.setAttribute("role", "status"); // a reason that is known later is announced
  /** @type {string | undefined} */
  let reason;
  // The same elements stay: the user may be about to click.
  const explain = (/** @type {string | undefined} */ known) => {
    reason = known;
    const key = reason === "backchannel" || reason === "frontchannel" ? "provider" : reason;
    why.textContent = `${/** @type {Record<string, string>} */ (text)[key ?? ""] ?? ""} ${text.kept}`.trim();
  };
  for (const [attribute, element] of Object.entries({ "aria-labelledby": title, "aria-describedby": why })) {
    element.id = `cloakroom-${attribute}`;
    dialog.setAttribute(attribute, element.id);
  }
  dialog.setAttribute("closedby", "none"); // not by Escape
  const button = append(dialog, "button", text.signIn);
  button.onclick = () => {
    // After a logout the browser has nothing that tells the broker who was here.
    // Nor is a logout excluded while the reason is unknown.
    const options = !reason || reason === "logout" ? { prompt: "login" } : {};
    Promise.resolve(client.login({ ...options, window: true })).catch(() => client.login(options)); // the browser blocks windows
  };
  // Properties, for the policy of the app may forbid the attribute style. The
  // styles of the app could hide the text, or show the page below.
  for (const element of [dialog, title, why, button]) element.style.all = "revert";
  Object.assign(dialog.style, {
    boxSizing: "border-box",
    width: "100vw",
    maxWidth: "none",
    height: "100vh",
    maxHeight: "none",
    margin: "0",
    padding: "20vh 1rem 1rem",
    border: "0",
    textAlign: "center",
  });
  Object.assign(button.style, { minWidth: "44px", minHeight: "44px", padding: "0.5rem 1.5rem", font: "inherit" });
  dialog.oncancel = (event) => event.preventDefault();
  dialog.onclose = () => dialog.isConnected && dialog.showModal(); // without closedby, browsers let a second Escape close it
  document.body.append(dialog);
  if (dialog.showModal) dialog.showModal();
  else dialog.setAttribute("open", ""); // jsdom
  return { dialog, explain };
}

/**
 * @param {HTMLElement} parent
 * @param {string} name
 * @param {string} text
 */
function append(parent, name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  parent.append(element);
  return element;
}

const noticed = new WeakSet();

/** @type {typeof import("./notice.d.ts").sessionOrSignIn<any>} */
export async function sessionOrSignIn(client, returnTo, { notice = true } = {}) {
  if (notice && !noticed.has(client)) {
    noticed.add(client);
    signInNotice(client);
  }
  const first = await client.session().catch(() => client.current ?? nextSession(client));
  let session = client.current ?? first; // it may be newer
  while (!session.authenticated && client.state.status === "ended") session = await nextSession(client);
  if (!session.authenticated) client.login({ returnTo });
  return session;
}

/**
 * Waits for the next session state.
 *
 * @param {Client<any>} client
 * @returns {Promise<Session<any>>}
 */
const nextSession = (client) =>
  new Promise((done) => {
    const off = client.on("change", (session) => {
      off();
      done(session);
    });
  });
