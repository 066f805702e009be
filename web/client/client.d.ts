// The types of client.js.

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
  /** Reads the body of an error response: `if (!response.ok) throw await ProblemError.from(response)`. */
  static from(response: Response): Promise<ProblemError>;
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
  /**
   * Prefix of the endpoints. Default: where the broker serves this file. In a
   * bundle: `bff` below the page's `<base href>`, or `/bff`.
   */
  prefix?: string;
  /** Receive events of the session from the broker. Default: true. */
  events?: boolean;
  /** How long before its end a session is `expiring`, in seconds, at most half of the idle timeout. Default: 60. */
  warn?: number;
}

/**
 * - `loading`: nothing is known yet. Call {@link Client.session}.
 * - `signed-out`: no user is signed in, and none was on this page.
 * - `expiring`: the session ends in `seconds`, because of inactivity (`idle`) or in any case (`lifetime`).
 * - `ended`: the session ended on this page. The reason, such as `logout`, `idle` or `revoked`, is not always known.
 * - `unreachable`: the broker cannot be reached. {@link Client.current} is the last known state.
 */
export type State =
  | { status: "loading" | "signed-in" | "signed-out" | "unreachable" }
  | { status: "expiring"; seconds: number; reason: "idle" | "lifetime" }
  | { status: "ended"; reason: string | undefined };

/** A session of the user on some device. Times are `null` if unknown. */
export interface DeviceSession {
  id: string;
  created_at: string;
  last_seen_at: string | null;
  idle_expires_at: string | null;
  expires_at: string | null;
  /** Such as "Firefox on Linux"; empty if unknown. */
  device: string;
  /** It is the session of this browser. */
  current: boolean;
}

export interface FetchOptions extends RequestInit {
  /** The call does not count as activity of the user. For polling. Default: false. */
  background?: boolean;
}

/** Status and headers of a response: a `Response`, or an `HttpErrorResponse` of Angular. */
export interface ResponseHead {
  readonly status: number;
  readonly headers: { get(name: string): string | null };
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

export interface WindowLoginOptions extends LoginOptions {
  /** Sign in in another window, so that this page keeps what it shows. */
  window: true;
  /** Ends the wait. */
  signal?: AbortSignal;
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
export type StateListener = (state: State) => void;

export interface Client<Claims extends object = UserClaims> {
  /** The last known session state; `undefined` before the first response. The same object until it changes. */
  readonly current: Session<Claims> | undefined;
  /** What to show the user. The same object until it changes. */
  readonly state: State;
  /**
   * Requests the session state. Calls at the same time share one request, and so
   * do calls within 100 ms after it, unless `fresh` is true. Neither extends the
   * session nor refreshes a token. From the first call on, the client follows the
   * session and emits events.
   */
  session(fresh?: boolean): Promise<Session<Claims>>;
  /** Refreshes the tokens now and returns the session state. Rarely needed. */
  refresh(): Promise<Session<Claims>>;
  /**
   * The browser's `fetch` for this origin, with the CSRF header. Throws a
   * `TypeError` for other origins. Resolves with any response, errors included.
   * A 401 `not_signed_in` also emits `signed-out`.
   */
  fetch(input: RequestInfo | URL, init?: FetchOptions): Promise<Response>;
  /** Navigates to the sign-in. */
  login(options?: LoginOptions & { window?: false }): void;
  /**
   * Opens the sign-in in another window. Call it in the handler of a click. It
   * resolves with the session state after a sign-in, or when `signal` is aborted.
   * A closed window is not noticed: offer a way to cancel. Rejects with a
   * `NotAllowedError` if the browser blocks the window. Another user may have
   * signed in: compare `user.sub`.
   */
  login(options: WindowLoginOptions): Promise<Session<Claims>>;
  /**
   * Returns the options for {@link Client.login} if the response, of the broker
   * or the API, requires a stronger or newer sign-in (RFC 9470). Otherwise
   * `undefined`.
   */
  challenge(response: ResponseHead): LoginOptions | undefined;
  /**
   * Navigates to the sign-in that the response requires (see
   * {@link Client.challenge}) and returns to this page. Returns `false` and does
   * nothing for other responses. A user who cancels stays signed in as before.
   */
  stepUp(response: ResponseHead, options?: Pick<LoginOptions, "returnTo" | "loginHint" | "uiLocales">): boolean;
  /**
   * Signs the user in without interaction if the provider has a session. `false`
   * may also mean that the browser blocks the provider's cookies in frames, as
   * is common if the provider is on another site. Never rejects.
   */
  silentLogin(options?: SilentLoginOptions): Promise<boolean>;
  /** Signs out here and at the provider, by navigation. An error is shown as a page. */
  logout(options?: LogoutOptions): void;
  /** Returns the user's sessions on all devices, newest first, at most 100. */
  sessions(): Promise<DeviceSession[]>;
  /** Ends a session of the user. */
  endSession(id: string): Promise<void>;
  /** Ends all sessions of the user but this one. */
  endOtherSessions(): Promise<void>;
  /** Calls `listener` for each `event`. Returns a function that removes it. */
  on(event: EventName, listener: Listener<Claims>): () => void;
  /** Calls `listener` when {@link Client.state} changed; each second while it is `expiring`. */
  on(event: "state", listener: StateListener): () => void;
  /** Removes all listeners, timers, the event stream and the channel to other tabs. */
  close(): void;
}

/** Creates a client. One for each page is enough. */
export declare function createClient<Claims extends object = UserClaims>(options?: ClientOptions): Client<Claims>;
