import { createElement as h, useState } from "react";
import { createRoot } from "react-dom/client";

import { createClient } from "@cloakroom-bff/client";
import { CloakroomProvider, RequireSession, useExpiry, useSession } from "@cloakroom-bff/client/react";

const client = createClient();
window.client = client;

function SignInAgain() {
  const { client, state } = useSession();
  return h("p", { role: "alert" }, `signed out: ${state.reason} `, h("button", { onClick: () => client.login({ window: true }) }, "Sign in again"));
}

function Letter() {
  const { client, authenticated, user, state } = useSession();
  const expiry = useExpiry();
  const [devices, setDevices] = useState("");
  const list = async () => setDevices((await client.sessions()).map(({ device, current }) => `${device}${current ? " (this one)" : ""}`).join(", "));
  return [
    h("p", { key: 1, id: "user" }, `${authenticated ? user.name : "nobody"} ${state.status} ${expiry?.reason ?? ""}`),
    h("textarea", { key: 2, "aria-label": "Letter" }),
    h("button", { key: 3, onClick: () => client.logout() }, "Sign out"),
    h("button", { key: 4, onClick: list }, "Devices"),
    h("p", { key: 5, id: "devices" }, devices),
  ];
}

const open = new URLSearchParams(location.search).has("open");
const ended = new URLSearchParams(location.search).has("notice") ? undefined : h(SignInAgain);
const content = h(Letter, { key: "letter" });
createRoot(document.querySelector("main")).render(
  h(CloakroomProvider, { client }, open ? content : h(RequireSession, { fallback: "wait", ended }, content)),
);
