// React hooks and components for the client. See react.d.ts.
import { createContext, createElement, Fragment, useCallback, useContext, useEffect, useState, useSyncExternalStore } from "react";

import { signInNotice } from "./notice.js";

/** @import { Client, State } from "./client.d.ts" */

const Context = createContext(/** @type {Client<any> | undefined} */ (undefined));
/** The user whose children are shown, below RequireSession. */
const User = createContext(/** @type {any} */ (undefined));

/** @type {State} */
const loading = { status: "loading" }; // what a server renders

/** @type {typeof import("./react.d.ts").CloakroomProvider} */
export function CloakroomProvider({ client, children }) {
  useEffect(() => {
    client.session().catch(() => {}); // the state reports the error
  }, [client]);
  return createElement(Context.Provider, { value: client }, children);
}

/** @type {typeof import("./react.d.ts").useClient<any>} */
export function useClient() {
  const client = useContext(Context);
  if (!client) throw new Error("there is no CloakroomProvider above this component");
  return client;
}

/** @type {typeof import("./react.d.ts").useSession<any>} */
export function useSession() {
  const client = useClient();
  const onChange = useCallback((/** @type {() => void} */ listener) => client.on("change", listener), [client]);
  const onState = useCallback((/** @type {() => void} */ listener) => client.on("state", listener), [client]);
  const current = useSyncExternalStore(onChange, () => client.current, () => undefined);
  const state = useSyncExternalStore(onState, () => client.state, () => loading);
  const shown = useContext(User);
  return { client, state, authenticated: current?.authenticated ?? false, user: current?.user ?? shown, session: current?.session };
}

/** @type {typeof import("./react.d.ts").useExpiry} */
export function useExpiry() {
  const { state } = useSession();
  return state.status === "expiring" ? state : undefined;
}

/** @type {typeof import("./react.d.ts").RequireSession} */
export function RequireSession({ children, fallback = null, ended }) {
  const { client, authenticated, user, state } = useSession();
  const [last, setLast] = useState(/** @type {any} */ (undefined));
  const shown = authenticated ? user : last; // the user whose children they are
  if (shown !== last) setLast(shown);
  const leave = !authenticated && state.status === "signed-out";
  const notice = ended === undefined;
  useEffect(() => (notice ? signInNotice(client) : undefined), [client, notice]);
  useEffect(() => {
    if (leave) client.login();
  }, [leave, client]);
  if (shown === undefined) return createElement(Fragment, null, fallback);
  // The children keep what the user has typed. Those of another user are new.
  return createElement(Fragment, null, createElement(User.Provider, { key: shown.sub, value: shown }, children), authenticated ? null : ended);
}
