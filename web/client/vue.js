// A Vue plugin and composable for the client. See vue.d.ts.
import { computed, inject, onScopeDispose, shallowRef } from "vue";

const key = Symbol("cloakroom");

/** @type {typeof import("./vue.d.ts").cloakroom} */
export const cloakroom = (client) => ({
  install(app) {
    app.provide(key, client);
    client.session().catch(() => {}); // the state reports the error
  },
});

/** @type {typeof import("./vue.d.ts").useSession<any>} */
export function useSession() {
  const client = /** @type {import("./client.d.ts").Client<any> | undefined} */ (inject(key));
  if (!client) throw new Error("app.use(cloakroom(client)) is missing");
  const current = shallowRef(client.current);
  const state = shallowRef(client.state);
  const off = [
    client.on("change", () => (current.value = client.current)),
    client.on("state", () => (state.value = client.state)),
  ];
  onScopeDispose(() => off.forEach((remove) => remove()));
  return {
    client,
    state,
    authenticated: computed(() => current.value?.authenticated ?? false),
    user: computed(() => current.value?.user),
    session: computed(() => current.value?.session),
    expiry: computed(() => (state.value.status === "expiring" ? state.value : undefined)),
  };
}
