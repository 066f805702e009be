import { Component, inject } from "@angular/core";
import { RouterOutlet } from "@angular/router";
import { Cloakroom } from "@cloakroom-bff/client/angular";

import { OrderService } from "./orders";

/** What is around the pages: the user, and what the state of the session means. */
@Component({
  selector: "app-root",
  imports: [RouterOutlet],
  template: `
    <header>
      <h1>Orders</h1>
      <p>{{ bff.user()?.name ?? bff.user()?.sub }}</p>
      @if (bff.authenticated()) {
        <button (click)="bff.client.logout({ returnTo: '/bff/signed-out' })">Sign out</button>
      }
    </header>
    @let state = bff.state();
    @switch (state.status) {
      @case ("expiring") {
        <p role="status">
          You will be signed out in {{ state.seconds }} s. <button (click)="orders.load()">Stay signed in</button>
        </p>
      }
      @case ("unreachable") {
        <p role="status">The app cannot be reached. It tries again.</p>
      }
    }
    <router-outlet />
  `,
})
export class App {
  protected readonly bff = inject(Cloakroom);
  protected readonly orders = inject(OrderService);
}
