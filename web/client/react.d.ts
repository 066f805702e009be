// React hooks and components for the client.
import type { ReactElement, ReactNode } from "react";
import type { Client, SessionTimes, State, UserClaims } from "./client.js";

/** Provides the client to the components below it, and requests the session state. */
export declare function CloakroomProvider<Claims extends object = UserClaims>(props: { client: Client<Claims>; children?: ReactNode }): ReactElement;

/** Returns the client of the provider above. */
export declare function useClient<Claims extends object = UserClaims>(): Client<Claims>;

/** Returns the session, and renders again when it changes. */
export declare function useSession<Claims extends object = UserClaims>(): {
  client: Client<Claims>;
  state: State;
  /** False also while the state is not known: see `state.status`. */
  authenticated: boolean;
  /** Below `RequireSession` also after the end of the session: it keeps what it shows. */
  user: Claims | undefined;
  session: SessionTimes | undefined;
};

/** Returns the seconds left while the session is about to end, and renders each second. */
export declare function useExpiry(): Extract<State, { status: "expiring" }> | undefined;

/**
 * Shows its children to users who are signed in. Others are sent to the sign-in.
 *
 * When the session ends while the page is open, it keeps the children, and so
 * what the user has typed. It covers them with a notice: the reason, and a button
 * for the sign-in in another window. With `ended`, it shows that besides the
 * children instead. A button there calls `login({ window: true })`, or
 * `login({ window: true, prompt: "login" })` after the reason `logout`. Children
 * of another user who signs in are new.
 */
export declare function RequireSession(props: {
  children?: ReactNode;
  /** Shown while the state is not known, and until the sign-in page loads. */
  fallback?: ReactNode;
  /** Shown after the end. Default: the notice of `signInNotice`. */
  ended?: ReactNode;
}): ReactElement;
