// An app without a build step. It shows what an app does with Cloakroom: a
// guard, queries, an event stream, a WebSocket, an upload, a download, an image,
// a stronger sign-in, a warning before the session ends, the user's devices, and
// what it says when something is down.
import { createClient, ProblemError } from "/bff/client.js";

/** @param {string} id */
const $ = (id) => document.getElementById(id);
const bff = createClient();

bff.on("state", showState);
bff.on("signed-in", start);
$("sign-out").onclick = () => bff.logout({ returnTo: "/bff/signed-out" });

/** Shows the app once a session is known. @param {import("/bff/client.js").Session} session */
function start({ user }) {
  $("user").textContent = user.name ?? user.sub;
  $("main").hidden = $("sign-out").hidden = false;
  $("picture").src = "/api/picture.svg";
  showOrders();
  showDevices();
  listen();
}

/** Says what the state of the session means for the user. @param {import("/bff/client.js").State} state */
function showState(state) {
  switch (state.status) {
    case "expiring":
      notify(`You will be signed out in ${state.seconds} s.`, "Stay signed in", showOrders);
      break;
    case "ended":
      notify("You were signed out.", "Sign in again", () => bff.login({ window: true }));
      break;
    case "unreachable":
      notify("The app cannot be reached. It tries again.");
      break;
    default:
      notify("");
  }
}

/** @param {string} text @param {string} [label] of a button @param {() => unknown} [act] */
function notify(text, label, act) {
  let button = $("notice").querySelector("button");
  if (label && button?.textContent === label) {
    $("notice").firstChild.data = text; // the button stays: a click that has begun would be lost with it
  } else {
    $("notice").textContent = text;
    if (!label) return;
    button = document.createElement("button");
    button.textContent = label;
    $("notice").append(" ", button);
  }
  button.onclick = act;
}

/** Calls the API and returns its JSON. @param {string} path @param {RequestInit} [init] */
async function call(path, init) {
  const response = await bff.fetch(path, init);
  if (bff.stepUp(response)) return undefined; // the page goes to the sign-in and comes back
  if (!response.ok) throw await ProblemError.from(response);
  return response.json();
}

async function showOrders() {
  try {
    const orders = await call("/api/orders");
    $("orders").replaceChildren(...orders.map(({ id, item }) => line(`/orders/${id}`, `${id}: ${item}`)));
    const id = location.pathname.match(/^\/orders\/(\d+)$/)?.[1];
    $("order").textContent = id ? `Order ${id}: ${orders.find((order) => `${order.id}` === id)?.item ?? "unknown"}` : "";
    if (bff.state.status === "signed-in") notify("");
  } catch (err) {
    // 401: showState says it. 503: nothing is lost, so the user can try again.
    if (err.code !== "not_signed_in") notify(`The orders cannot be loaded: ${err.message}`, "Try again", showOrders);
  }
}

/** @param {string} href @param {string} text */
function line(href, text) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  [link.href, link.textContent] = [href, text];
  item.append(link);
  return item;
}

/** @type {EventSource | undefined} */
let ticks;
/** @type {WebSocket | undefined} */
let chat;
function listen() {
  ticks?.close();
  ticks = new EventSource("/api/ticks");
  ticks.onmessage = () => ($("ticks").value = `${Number($("ticks").value) + 1}`);
  chat?.close();
  $("send").disabled = true;
  chat = new WebSocket("/api/chat");
  chat.onopen = () => ($("send").disabled = false);
  chat.onmessage = ({ data }) => ($("reply").value = data);
}
$("chat").onsubmit = (event) => {
  event.preventDefault();
  chat?.send(new FormData($("chat")).get("text"));
};

// fetch does not report the progress of an upload. XMLHttpRequest needs the header itself.
$("photo").onchange = () => {
  const upload = new XMLHttpRequest();
  upload.open("PUT", "/api/photo");
  upload.setRequestHeader("X-CSRF", "1");
  upload.upload.onprogress = ({ loaded, total }) => ($("progress").value = loaded / total);
  upload.onload = () => ($("uploaded").textContent = upload.status === 200 ? `${JSON.parse(upload.response).bytes} bytes uploaded` : `Failed: ${upload.status}`);
  upload.onerror = () => ($("uploaded").textContent = "The upload failed.");
  upload.send($("photo").files[0]);
};

// The route of this call requires a stronger sign-in.
$("close-year").onclick = async () => {
  const result = await call("/api/admin/close-year", { method: "POST" }).catch((err) => ({ text: err.message }));
  if (result) $("closed").textContent = result.text;
};

async function showDevices() {
  const sessions = await bff.sessions().catch(() => []);
  $("devices").replaceChildren(
    ...sessions.map(({ device, current, last_seen_at: seen }) => {
      const item = document.createElement("li");
      item.textContent = `${device || "Unknown device"}${current ? ", this one" : seen ? `, last seen ${new Date(seen).toLocaleString()}` : ""}`;
      return item;
    }),
  );
}
$("end-others").onclick = () => bff.endOtherSessions().then(showDevices);

// The guard: the whole app is for users who are signed in. While the state is not known, showState says so.
bff.session().then(({ authenticated }) => authenticated || bff.login(), () => {});
