// Defaults for TanStack Query and a guard for TanStack Router.
import type { Client, UserClaims } from "./client.js";

/**
 * No retry after a 4xx response, if the error has a `status`, as ProblemError has:
 * `new QueryClient({ defaultOptions: queryDefaults })`.
 */
export declare const queryDefaults: { queries: { retry: (failures: number, err: unknown) => boolean } };

/** The methods of a QueryClient that {@link followSession} uses. */
export interface Queries {
  cancelQueries(): Promise<void>;
  invalidateQueries(filters?: { refetchType?: "none" }): Promise<void>;
  resetQueries(): Promise<void>;
}

/**
 * Fetches queries again after a sign-in. After a sign-out it cancels requests and
 * marks all data as stale. When another user signs in, it drops the data.
 * Returns a function that ends this.
 */
export declare function followSession(queryClient: Queries, client: Client<object>): () => void;

/**
 * Returns a `beforeLoad` for routes that require a session. It adds `user` to the
 * route's context. On the first visit others are sent to the sign-in, which
 * returns to the route. After an end of the session while the page is open, a
 * notice offers the sign-in, and the guard waits for it. With `notice: false` the
 * app shows its own. While the broker cannot be reached and nothing is known, the
 * guard waits, too.
 */
export declare function requireSession<Claims extends object = UserClaims>(
  client: Client<Claims>,
  options?: { notice?: boolean },
): (options: { location: { href: string; publicHref?: string } }) => Promise<{ user: Claims }>;
