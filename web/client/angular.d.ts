// Angular providers, interceptor and guard for the client.
import type { HttpHandlerFn, HttpEvent, HttpRequest } from "@angular/common/http";
import type { EnvironmentProviders, InjectionToken, Signal } from "@angular/core";
import type { Observable } from "rxjs";
import type { Client, SessionTimes, State, UserClaims } from "./client.js";

export interface CloakroomService<Claims extends object = UserClaims> {
  client: Client<Claims>;
  /** The guard shows a notice after the end of the session. */
  notice: boolean;
  state: Signal<State>;
  /** False also while the state is not known: see `state`. */
  authenticated: Signal<boolean>;
  user: Signal<Claims | undefined>;
  session: Signal<SessionTimes | undefined>;
}

/**
 * The service: `inject(Cloakroom)`. Its first use requests the session state. For
 * claims of your own: `inject<CloakroomService<Claims>>(Cloakroom)`.
 */
export declare const Cloakroom: InjectionToken<CloakroomService>;

/**
 * Provides the service. For `bootstrapApplication`. With `notice: false`, the
 * guard shows no notice after the end of the session: the app does.
 */
export declare function provideCloakroom<Claims extends object>(client: Client<Claims>, options?: { notice?: boolean }): EnvironmentProviders;

/**
 * Adds the CSRF header to requests to this origin, and notices the end of the
 * session: `provideHttpClient(withInterceptors([cloakroomInterceptor]))`. On a
 * server that renders pages it does nothing.
 */
export declare function cloakroomInterceptor(request: HttpRequest<unknown>, next: HttpHandlerFn): Observable<HttpEvent<unknown>>;

/**
 * A guard of routes, for `canActivate`. On the first visit it navigates to the
 * sign-in, which returns to the route. After an end of the session while the page
 * is open, a notice offers the sign-in, and the guard waits for it. While the
 * broker cannot be reached and nothing is known, it waits, too. On a server that
 * renders pages it allows nothing: the browser asks again.
 */
export declare function requireSession(route: unknown, state: { url: string }): Promise<boolean>;
