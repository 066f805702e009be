// An app that uses everything. It is checked, not run; each line after @ts-expect-error has to be an error.
import { provideHttpClient, withInterceptors } from "@angular/common/http";
import { inject, type ApplicationConfig } from "@angular/core";
import { provideRouter } from "@angular/router";
import { QueryClient } from "@tanstack/react-query";
import { createRootRoute, createRoute } from "@tanstack/react-router";
import type { Page } from "playwright-core";
import { defineConfig } from "vite";
import { createApp } from "vue";

import { createClient, ProblemError, type Client, type State } from "@cloakroom-bff/client";
import { Cloakroom, cloakroomInterceptor, provideCloakroom, requireSession as requireSessionInAngular, type CloakroomService } from "@cloakroom-bff/client/angular";
import { sessionOrSignIn, signInNotice } from "@cloakroom-bff/client/notice";
import { CloakroomProvider, RequireSession, useClient, useExpiry, useSession } from "@cloakroom-bff/client/react";
import { sessionStore } from "@cloakroom-bff/client/svelte";
import { followSession, queryDefaults, requireSession } from "@cloakroom-bff/client/tanstack";
import { mockClient, signIn } from "@cloakroom-bff/client/testing";
import { cloakroom as vitePlugin, navigateFallbackDenylist } from "@cloakroom-bff/client/vite";
import { cloakroom as vuePlugin, useSession as useSessionInVue } from "@cloakroom-bff/client/vue";

interface Claims {
  sub: string;
  roles: string[];
}
const client: Client<Claims> = createClient<Claims>({ prefix: "/shop/bff", events: false, warn: 120 });
const state: State = client.state;
export const status = state.status === "expiring" ? state.seconds.toFixed() : state.status;
export const error = new ProblemError(500).code?.length;

function Header() {
  const { authenticated, user, session, client } = useSession<Claims>();
  const expiry = useExpiry();
  const same: Client<Claims> = useClient<Claims>();
  // @ts-expect-error there may be no user
  user.roles;
  return (
    <p title={session?.id}>
      {authenticated && user?.roles.join()} {expiry?.seconds}
      <button onClick={() => void client.login({ window: true })}>{String(same === client)}</button>
    </p>
  );
}
export const react = (
  <CloakroomProvider client={client}>
    <RequireSession fallback="wait" ended={<b>signed out</b>}>
      <Header />
    </RequireSession>
  </CloakroomProvider>
);

export const stop: () => void = signInNotice(client);
// @ts-expect-error a client is required
signInNotice({});
declare const withoutSub: Client<{ roles: string[] }>;
signInNotice(withoutSub);
export const rolesOfSession: Promise<string[] | undefined> = sessionOrSignIn(client, "/orders").then(({ user }) => user?.roles);

createApp({
  setup() {
    const { user, state, expiry } = useSessionInVue<Claims>();
    return () => [user.value?.roles, state.value.status, expiry.value?.reason];
  },
}).use(vuePlugin(client));

sessionStore(client).subscribe(({ user, expiry }) => console.log(user?.roles, expiry?.seconds));

export const angular: ApplicationConfig = {
  providers: [
    provideCloakroom(client),
    provideHttpClient(withInterceptors([cloakroomInterceptor])),
    provideRouter([{ path: "", children: [], canActivate: [requireSessionInAngular] }]),
  ],
};
export const service = (): string | undefined => inject(Cloakroom).user()?.sub;
export const rolesOfService = (): string[] | undefined => inject<CloakroomService<Claims>>(Cloakroom).user()?.roles;
// @ts-expect-error the type of other claims is not known
export const unknownRoles = (): string[] | undefined => inject(Cloakroom).user()?.roles;

const queryClient = new QueryClient({ defaultOptions: queryDefaults });
export const off: () => void = followSession(queryClient, client);
followSession(queryClient, withoutSub);
// @ts-expect-error a client is required
followSession(queryClient, {});
// @ts-expect-error the error can be anything: it has to be checked
export const status4xx: typeof queryDefaults.queries.retry = (failures, err) => err.status < 500;
const root = createRootRoute();
const orders = createRoute({ getParentRoute: () => root, path: "/orders", beforeLoad: requireSession(client) });
export const roles = (): string[] => orders.useRouteContext().user.roles;

export const vite = defineConfig({ plugins: [vitePlugin({ broker: "http://localhost:8080", routes: ["/api/"], compress: false })] });
export const workbox: { navigateFallbackDenylist: RegExp[] } = { navigateFallbackDenylist };

const mock = mockClient<Claims>({ user: { sub: "alice", roles: [] }, state: { status: "loading" }, fetch: () => new Response() });
mock.expire(30);
export const asClient: Client<Claims> = mock;
export const playwright = (page: Page) => signIn(page, { sub: "carol", roles: ["admin"] }, { returnTo: "/orders" });
// @ts-expect-error sub is required
export const noSub = (page: Page) => signIn(page, { roles: ["admin"] });
