// Angular providers, interceptor and guard for the client. See angular.d.ts.
import { Location } from "@angular/common";
import { computed, inject, InjectionToken, makeEnvironmentProviders, signal } from "@angular/core";
import { tap } from "rxjs";

/** @type {typeof import("./angular.d.ts").Cloakroom} */
export const Cloakroom = new InjectionToken("Cloakroom");

/** @type {typeof import("./angular.d.ts").provideCloakroom} */
export function provideCloakroom(client) {
  return makeEnvironmentProviders([{ provide: Cloakroom, useFactory: () => service(client) }]);
}

/**
 * @param {import("./client.d.ts").Client<any>} client
 * @returns {import("./angular.d.ts").CloakroomService<any>}
 */
function service(client) {
  const current = signal(client.current);
  const state = signal(client.state);
  client.on("change", () => current.set(client.current));
  client.on("state", () => state.set(client.state));
  client.session().catch(() => {}); // the state reports the error
  return {
    client,
    state: state.asReadonly(),
    authenticated: computed(() => current()?.authenticated ?? false),
    user: computed(() => current()?.user),
    session: computed(() => current()?.session),
  };
}

/** @type {typeof import("./angular.d.ts").cloakroomInterceptor} */
export const cloakroomInterceptor = (request, next) => {
  const { client } = inject(Cloakroom);
  if (new URL(request.url, document.baseURI).origin !== location.origin) return next(request);
  const error = (/** @type {any} */ err) => {
    if (err.status === 401 && err.error?.code === "not_signed_in") client.session(true).catch(() => {});
  };
  return next(request.clone({ setHeaders: { "X-CSRF": "1" } })).pipe(tap({ error }));
};

/** @type {typeof import("./angular.d.ts").requireSession} */
export const requireSession = async (_route, { url }) => {
  const { client } = inject(Cloakroom);
  const returnTo = inject(Location).prepareExternalUrl(url);
  const session = await client.session().catch(() => client.current ?? firstSession(client));
  if (!session.authenticated) client.login({ returnTo });
  return session.authenticated;
};

/**
 * Waits until the broker, which cannot be reached, has sent a session state.
 *
 * @param {import("./client.d.ts").Client<any>} client
 * @returns {Promise<import("./client.d.ts").Session<any>>}
 */
const firstSession = (client) =>
  new Promise((done) => {
    const off = client.on("change", (session) => {
      off();
      done(session);
    });
  });
