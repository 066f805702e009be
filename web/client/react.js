// React hooks and components for the client. See react.d.ts.
import { createContext, createElement, Fragment, useCallback, useContext, useEffect, useRef, useSyncExternalStore } from "react";

/** @import { Client, State } from "./client.d.ts" */

const Context = createContext(/** @type {Client<any> | undefined} */ (undefined));

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
  return { client, state, authenticated: current?.authenticated ?? false, user: current?.user, session: current?.session };
}

/** @type {typeof import("./react.d.ts").useExpiry} */
export function useExpiry() {
  const { state } = useSession();
  return state.status === "expiring" ? state : undefined;
}

/** @type {typeof import("./react.d.ts").RequireSession} */
export function RequireSession({ children, fallback = null, ended }) {
  const { client, authenticated, state } = useSession();
  const shown = useRef(false);
  if (authenticated) shown.current = true;
  const keep = shown.current && ended !== undefined; // what the user has typed
  const leave = !authenticated && !keep && (state.status === "signed-out" || state.status === "ended");
  // After a logout in another tab the provider may still know the user.
  const prompt = state.status === "ended" && state.reason === "logout" ? "login" : undefined;
  useEffect(() => {
    if (leave) client.login(prompt && { prompt });
  }, [leave, prompt, client]);
  if (!authenticated && !keep) return createElement(Fragment, null, fallback);
  return createElement(Fragment, null, children, authenticated ? null : ended);
}
