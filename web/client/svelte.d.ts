// A Svelte store for the client.
import type { Readable } from "svelte/store";
import type { Client, SessionTimes, State, UserClaims } from "./client.js";

/**
 * Returns a store of the session. The first subscription requests the state.
 *
 *     const session = sessionStore(client);   // then {#if $session.authenticated}
 */
export declare function sessionStore<Claims extends object = UserClaims>(client: Client<Claims>): Readable<{
  client: Client<Claims>;
  state: State;
  /** False also while the state is not known: see `state`. */
  authenticated: boolean;
  user: Claims | undefined;
  session: SessionTimes | undefined;
  /** Set while the session is about to end, with the seconds left. */
  expiry: Extract<State, { status: "expiring" }> | undefined;
}>;
