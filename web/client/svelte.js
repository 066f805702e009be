// A Svelte store for the client. See svelte.d.ts.
import { readable } from "svelte/store";

/** @type {typeof import("./svelte.d.ts").sessionStore<any>} */
export function sessionStore(client) {
  const value = () => {
    const { current, state } = client;
    return {
      client,
      state,
      authenticated: current?.authenticated ?? false,
      user: current?.user,
      session: current?.session,
      expiry: state.status === "expiring" ? state : undefined,
    };
  };
  return readable(value(), (set) => {
    const update = () => set(value());
    const off = [client.on("change", update), client.on("state", update)];
    update();
    client.session().catch(() => {}); // the state reports the error
    return () => off.forEach((remove) => remove());
  });
}
