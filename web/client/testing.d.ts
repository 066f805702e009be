// A client for tests of components, and the sign-in for tests in a browser.
import type { Client, DeviceSession, State, UserClaims } from "./client.js";

export interface MockClient<Claims extends object = UserClaims> extends Client<Claims> {
  /** A session of this user starts. `login` does that too. */
  signIn(user: Claims): void;
  /** The session ends. `logout` does that too. */
  signOut(reason?: string): void;
  /** The session is about to end. */
  expire(seconds: number, reason?: "idle" | "lifetime"): void;
  /** The broker cannot be reached, until the next of these calls. */
  unreachable(): void;
}

export interface MockOptions<Claims extends object = UserClaims> {
  /** The user who is signed in. Default: none. */
  user?: Claims;
  /** The state at the start. Default: `signed-in` or `signed-out`. */
  state?: State;
  /** Responds to `fetch`. Default: 404. */
  fetch?: (request: Request) => Response | Promise<Response>;
  sessions?: DeviceSession[];
}

/** Returns a client that sends no requests. Its methods do what they do in an app, at once. */
export declare function mockClient<Claims extends object = UserClaims>(options?: MockOptions<Claims>): MockClient<Claims>;

/** The methods of a Playwright page that {@link signIn} uses. */
export interface TestPage {
  url(): string;
  goto(url: string): Promise<unknown>;
  request: {
    post(url: string, options: { headers: Record<string, string>; data: object }): Promise<{ status(): number; url(): string; json(): Promise<unknown> }>;
  };
}

/**
 * Signs the user in at the development provider of `cloakroom dev` or `cloakroom
 * demo`, without its page, and opens `returnTo`. `claims` are those of the ID
 * token, with `sub`; a string is a user of dev-users.yaml. A page that has
 * loaded nothing yet needs `baseURL` in the configuration of Playwright.
 */
export declare function signIn(
  page: TestPage,
  claims: { sub: string; [claim: string]: unknown } | string,
  options?: { returnTo?: string; prefix?: string },
): Promise<void>;
