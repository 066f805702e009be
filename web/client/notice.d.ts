// What the guards do without a session, for other frameworks and for routers
// without a guard here.
import type { Client, Session, UserClaims } from "./client.js";

/**
 * Shows a notice over the page when the session has ended while the page is
 * open: the reason, and a button for the sign-in in another window. The page
 * below is kept. If another user signs in, the page is loaded again. The text is
 * English or German, as the attribute `lang` of the page says. Returns a function
 * that ends this.
 */
export declare function signInNotice(client: Client<object>): () => void;

/**
 * Returns the session for a guard. On a page that had none, it navigates to the
 * sign-in, which returns to `returnTo`, a path with the base of the app, and
 * returns the state without a session. After an end while the page is open, it
 * waits until the user has signed in again. While the broker cannot be reached
 * and nothing is known, it waits, too.
 *
 * Its first call shows {@link signInNotice}, unless `notice` is false.
 */
export declare function sessionOrSignIn<Claims extends object = UserClaims>(
  client: Client<Claims>,
  returnTo: string,
  options?: { notice?: boolean },
): Promise<Session<Claims>>;
