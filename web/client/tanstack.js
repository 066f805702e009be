// Defaults for TanStack Query and a guard for TanStack Router. See tanstack.d.ts.
import { sessionOrSignIn } from "./notice.js";

/** @type {typeof import("./tanstack.d.ts").queryDefaults} */
export const queryDefaults = {
  // What the client caused is the same the next time, 401 among it.
  queries: { retry: (failures, err) => !(Number(/** @type {any} */ (err)?.status) < 500) && failures < 3 },
};

/** @type {(queryClient: import("./tanstack.d.ts").Queries, client: import("./client.d.ts").Client<any>) => () => void} */
export function followSession(queryClient, client) {
  let user = client.current?.user?.sub;
  let authenticated = client.current?.authenticated;
  return client.on("change", (session) => {
    const before = authenticated;
    authenticated = session.authenticated;
    if (!session.authenticated) {
      queryClient.cancelQueries();
      queryClient.invalidateQueries({ refetchType: "none" }); // a request now would get 401
      return;
    }
    const { sub } = session.user;
    if (user !== undefined && sub !== user) queryClient.resetQueries(); // nothing of the other user
    else if (!before) queryClient.invalidateQueries();
    user = sub;
  });
}

/** @type {typeof import("./tanstack.d.ts").requireSession<any>} */
export const requireSession = (client, options) => async ({ location }) => {
  const session = await sessionOrSignIn(client, location.publicHref ?? location.href, options);
  return session.authenticated ? { user: session.user } : new Promise(() => {}); // the page is left
};
