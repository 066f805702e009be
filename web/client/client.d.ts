// The types of client.js. For an app that imports it from the broker, tell TypeScript where this file is:
//
//   "paths": { "/bff/client.js": ["./types/cloakroom-client.d.ts"] }

/** Who is signed in, as the broker says. `Claims` is what your provider puts into an ID token. */
export type Session<Claims extends object = UserClaims> =
  | { authenticated: false; user?: undefined; session?: undefined }
  | { authenticated: true; user: Claims; session: SessionTimes };

/** The standard claims of OpenID Connect that most providers send (Core 5.1), and whatever else yours does. */
export interface UserClaims {
  sub: string;
  name?: string;
  preferred_username?: string;
  email?: string;
  email_verified?: boolean;
  picture?: string;
  [claim: string]: unknown;
}

/** When things end. All times are RFC 3339 strings, for `new Date(…)`. */
export interface SessionTimes {
  /** Names the session in logs. It opens nothing. */
  id: string;
  created_at: string;
  /** When the session ends unless the API is called before. */
  idle_expires_at: string;
  /** When the session ends whatever happens. */
  expires_at: string;
  /** When the broker's access token expires; it gets a new one by itself. `null` if the provider did not say. */
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

/** A call to the broker was answered with an error. */
export declare class ProblemError extends Error {
  constructor(status: number, problem?: Problem);
  readonly name: "ProblemError";
  /** The HTTP status. */
  status: number;
  /** What happened, stable: `not_signed_in`, `csrf`, `store_unavailable`, … Absent if something on the way answered. */
  code: string | undefined;
  /** Where to sign in, if that would help. */
  loginUrl: string | undefined;
  /** What to quote to the operators: their log has it. */
  requestId: string | undefined;
}

export interface ClientOptions {
  /** Where the broker's endpoints are. Default: where this file was loaded from, or `/bff` when it is part of a bundle. */
  prefix?: string;
}

export interface FetchOptions extends RequestInit {
  /** The user did not ask for this call, so it does not keep the session from idling out. For polling. Default: false. */
  background?: boolean;
}

export interface LoginOptions {
  /** Where to arrive signed in: a path of the app. A route's path needs `documents: allow` there. Default: here. */
  returnTo?: string;
  /** `login` asks for the password again, `select_account` for the account, `create` for a new one; `none` asks nothing. */
  prompt?: "login" | "consent" | "select_account" | "create" | "none" | (string & {});
  /** Who is about to sign in, such as an e-mail address. */
  loginHint?: string;
  /** How strong the sign-in has to be, in your provider's words, separated by spaces. */
  acrValues?: string;
  /** How many seconds ago the user may have given the password at most. */
  maxAge?: number;
  /** Languages of the sign-in page, best first, separated by spaces. */
  uiLocales?: string;
}

export interface SilentLoginOptions {
  /** How many milliseconds to wait for the provider. Default: 10,000. */
  timeout?: number;
}

export interface LogoutOptions {
  /** Where to arrive signed out: a path of the app. A route's path needs `documents: allow` there. Default: `/`. */
  returnTo?: string;
}

/**
 * - `signed-in`: there is a session that the client did not know of.
 * - `signed-out`: there is none any more. A call noticed, or another tab signed out.
 * - `change`: any difference in what {@link Client.session} says, both of the above included.
 */
export type EventName = "signed-in" | "signed-out" | "change";
export type Listener<Claims extends object = UserClaims> = (session: Session<Claims>) => void;

export interface Client<Claims extends object = UserClaims> {
  /** Asks who is signed in. It neither extends the session nor refreshes a token. */
  session(): Promise<Session<Claims>>;
  /** Has the tokens refreshed now, and says who is signed in. Rarely needed: the broker does it in time. */
  refresh(): Promise<Session<Claims>>;
  /**
   * The browser's `fetch` for this origin, with what the broker asks for. It refuses other origins with a `TypeError`. Any answer is
   * returned, errors too; a 401 that means that nobody is signed in raises `signed-out` besides.
   */
  fetch(input: RequestInfo | URL, init?: FetchOptions): Promise<Response>;
  /** Leaves the page to sign in. */
  login(options?: LoginOptions): void;
  /**
   * What to call {@link Client.login} with, if an answer says that the user has to sign in more strongly, or again (RFC 9470): the broker's, for a route
   * that requires it, or the API's own. `undefined` for every other answer.
   */
  challenge(response: Response): LoginOptions | undefined;
  /**
   * Leaves the page for the sign-in that an answer demands (see {@link Client.challenge}), to come back to where it is. Returns `false`, and does nothing, for
   * every other answer. Who does not go through with it stays signed in as before.
   */
  stepUp(response: Response, options?: Pick<LoginOptions, "returnTo" | "loginHint" | "uiLocales">): boolean;
  /**
   * Finds out, without a word to the user, whether the provider knows them, and signs them in if it does. `false` may also mean that the browser keeps the
   * provider's cookies out of frames, as more and more do where the provider is another site than the app. Never rejects.
   */
  silentLogin(options?: SilentLoginOptions): Promise<boolean>;
  /** Leaves the page to sign out, here and at the provider. If that cannot be done, the browser shows a page that says so. */
  logout(options?: LogoutOptions): void;
  /** Calls `listener` at each `event`. Returns a function that ends this. */
  on(event: EventName, listener: Listener<Claims>): () => void;
}

/** Creates a client. A page needs one. */
export declare function createClient<Claims extends object = UserClaims>(options?: ClientOptions): Client<Claims>;
