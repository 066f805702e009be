// The types of client.js. An app that imports it from the broker configures
// TypeScript:
//
//   "paths": { "/bff/client.js": ["./types/cloakroom-client.d.ts"] }

/** The session state. `Claims` are the claims of your provider's ID tokens. */
export type Session<Claims extends object = UserClaims> =
  | { authenticated: false; user?: undefined; session?: undefined }
  | { authenticated: true; user: Claims; session: SessionTimes };

/** The common standard claims (OpenID Connect Core, section 5.1), and any others. */
export interface UserClaims {
  sub: string;
  name?: string;
  preferred_username?: string;
  email?: string;
  email_verified?: boolean;
  picture?: string;
  [claim: string]: unknown;
}

/** Times are RFC 3339 strings, for `new Date(…)`. */
export interface SessionTimes {
  /** Identifies the session in logs. It gives no access. */
  id: string;
  created_at: string;
  /** When the session ends without further API calls. */
  idle_expires_at: string;
  /** When the session ends in any case. */
  expires_at: string;
  /** When the access token expires. The broker refreshes it. `null` if unknown. */
  access_token_expires_at: string | null;
}

/** The body of an error (RFC 9457). */
export interface Problem {
  type?: string;
  title?: string;
  status?: number;
  code?: string;
  detail?: string;
  login_url?: string;
  request_id?: string;
}

/** An error response of the broker. */
export declare class ProblemError extends Error {
  constructor(status: number, problem?: Problem);
  readonly name: "ProblemError";
  /** The HTTP status. */
  status: number;
  /** A stable code, such as `not_signed_in`. Absent if the response is not from the broker. */
  code: string | undefined;
  /** Where to sign in, if that helps. */
  loginUrl: string | undefined;
  /** The id of the request in the operator's log. */
  requestId: string | undefined;
}

export interface ClientOptions {
  /** Prefix of the endpoints. Default: where this file was loaded from, or `/bff` in a bundle. */
  prefix?: string;
}

export interface FetchOptions extends RequestInit {
  /** The call does not count as activity of the user. For polling. Default: false. */
  background?: boolean;
}

export interface LoginOptions {
  /** Path of the app to return to. A route needs `documents: allow`. Default: this page. */
  returnTo?: string;
  /** `login` (password again), `select_account`, `create` (new account) or `none`. */
  prompt?: "login" | "consent" | "select_account" | "create" | "none" | (string & {});
  /** The expected user, such as an e-mail address. */
  loginHint?: string;
  /** Required authentication contexts, as defined by the provider, separated by spaces. */
  acrValues?: string;
  /** Maximum age of the user's sign-in at the provider, in seconds. */
  maxAge?: number;
  /** Languages of the sign-in page, best first, separated by spaces. */
  uiLocales?: string;
}

export interface SilentLoginOptions {
  /** Time to wait for the provider, in milliseconds. Default: 10,000. */
  timeout?: number;
}

export interface LogoutOptions {
  /** Path of the app to return to. A route needs `documents: allow`. Default: `/`. */
  returnTo?: string;
}

/**
 * - `signed-in`: a session started.
 * - `signed-out`: the session ended, as a call or another tab noticed.
 * - `change`: the result of {@link Client.session} changed; includes the other two.
 */
export type EventName = "signed-in" | "signed-out" | "change";
export type Listener<Claims extends object = UserClaims> = (session: Session<Claims>) => void;

export interface Client<Claims extends object = UserClaims> {
  /** Returns the session state. Neither extends the session nor refreshes a token. */
  session(): Promise<Session<Claims>>;
  /** Refreshes the tokens now and returns the session state. Rarely needed. */
  refresh(): Promise<Session<Claims>>;
  /**
   * The browser's `fetch` for this origin, with the CSRF header. Throws a
   * `TypeError` for other origins. Resolves with any response, errors included.
   * A 401 `not_signed_in` also emits `signed-out`.
   */
  fetch(input: RequestInfo | URL, init?: FetchOptions): Promise<Response>;
  /** Navigates to the sign-in. */
  login(options?: LoginOptions): void;
  /**
   * Returns the options for {@link Client.login} if the response, of the broker
   * or the API, requires a stronger or newer sign-in (RFC 9470). Otherwise
   * `undefined`.
   */
  challenge(response: Response): LoginOptions | undefined;
  /**
   * Navigates to the sign-in that the response requires (see
   * {@link Client.challenge}) and returns to this page. Returns `false` and does
   * nothing for other responses. A user who cancels stays signed in as before.
   */
  stepUp(response: Response, options?: Pick<LoginOptions, "returnTo" | "loginHint" | "uiLocales">): boolean;
  /**
   * Signs the user in without interaction if the provider has a session. `false`
   * may also mean that the browser blocks the provider's cookies in frames, as
   * is common if the provider is on another site. Never rejects.
   */
  silentLogin(options?: SilentLoginOptions): Promise<boolean>;
  /** Signs out here and at the provider, by navigation. An error is shown as a page. */
  logout(options?: LogoutOptions): void;
  /** Calls `listener` for each `event`. Returns a function that removes it. */
  on(event: EventName, listener: Listener<Claims>): () => void;
}

/** Creates a client. One for each page is enough. */
export declare function createClient<Claims extends object = UserClaims>(options?: ClientOptions): Client<Claims>;
