// Angular providers, interceptor and guard for the client. See angular.d.ts.
import { Location } from "@angular/common";
import { computed, inject, InjectionToken, makeEnvironmentProviders, signal } from "@angular/core";
import { tap } from "rxjs";

import { sessionOrSignIn } from "./notice.js";

/** @type {typeof import("./angular.d.ts").Cloakroom} */
export const Cloakroom = new InjectionToken("Cloakroom");

/** @type {typeof import("./angular.d.ts").provideCloakroom} */
export function provideCloakroom(client, { notice = true } = {}) {
  return makeEnvironmentProviders([{ provide: Cloakroom, useFactory: () => service(client, notice) }]);
}

/**
 * @param {import("./client.d.ts").Client<any>} client
 * @param {boolean} notice
 * @returns {import("./angular.d.ts").CloakroomService<any>}
 */
function service(client, notice) {
  const current = signal(client.current);
  const state = signal(client.state);
  client.on("change", () => current.set(client.current));
  client.on("state", () => state.set(client.state));
  client.session().catch(() => {}); // the state reports the error
  return {
    client,
    notice,
    state: state.asReadonly(),
    authenticated: computed(() => current()?.authenticated ?? false),
    user: computed(() => current()?.user),
    session: computed(() => current()?.session),
  };
}

/** Reports whether a server renders the page, as `ng build` may do. It has no session. */
const onServer = () => !globalThis.document;

/** @type {typeof import("./angular.d.ts").cloakroomInterceptor} */
export const cloakroomInterceptor = (request, next) => {
  const { client } = inject(Cloakroom);
  if (onServer() || new URL(request.url, document.baseURI).origin !== location.origin) return next(request);
  const error = (/** @type {any} */ err) => {
    if (err.status === 401 && err.error?.code === "not_signed_in") client.session(true).catch(() => {});
  };
  return next(request.clone({ setHeaders: { "X-CSRF": "1" } })).pipe(tap({ error }));
};

/** @type {typeof import("./angular.d.ts").requireSession} */
export const requireSession = async (_route, { url }) => {
  if (onServer()) return false; // the browser asks again
  const { client, notice } = inject(Cloakroom);
  const returnTo = inject(Location).prepareExternalUrl(url);
  return (await sessionOrSignIn(client, returnTo, { notice })).authenticated;
};
