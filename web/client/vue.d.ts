// A Vue plugin and composable for the client.
import type { App, Ref } from "vue";
import type { Client, SessionTimes, State, UserClaims } from "./client.js";

/** The plugin: `app.use(cloakroom(client))`. It requests the session state. */
export declare function cloakroom<Claims extends object>(client: Client<Claims>): { install(app: App): void };

/** Returns the session as refs. Call it in `setup`. */
export declare function useSession<Claims extends object = UserClaims>(): {
  client: Client<Claims>;
  state: Readonly<Ref<State>>;
  /** False also while the state is not known: see `state`. */
  authenticated: Readonly<Ref<boolean>>;
  user: Readonly<Ref<Claims | undefined>>;
  session: Readonly<Ref<SessionTimes | undefined>>;
  /** Set while the session is about to end, with the seconds left. */
  expiry: Readonly<Ref<Extract<State, { status: "expiring" }> | undefined>>;
};
