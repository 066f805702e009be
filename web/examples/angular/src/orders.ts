import { HttpClient } from "@angular/common/http";
import { Component, computed, effect, inject, Injectable, input, signal } from "@angular/core";
import { RouterLink } from "@angular/router";
import { Cloakroom } from "@cloakroom-bff/client/angular";

interface Order {
  id: number;
  item: string;
}

/** The orders. They are loaded again after a sign-in, and kept when the session ends. */
@Injectable({ providedIn: "root" })
export class OrderService {
  readonly #http = inject(HttpClient);
  readonly #session = inject(Cloakroom).session;
  readonly #sessionId = computed(() => this.#session()?.id);
  readonly all = signal<Order[]>([]);
  readonly problem = signal("");

  constructor() {
    effect(() => this.#sessionId() && this.load());
  }

  load() {
    this.#http.get<Order[]>("/api/orders").subscribe({
      next: (orders) => {
        this.all.set(orders);
        this.problem.set("");
      },
      error: ({ error, message }) => {
        if (error?.code !== "not_signed_in") this.problem.set(message); // App says that the session has ended
      },
    });
  }
}

/** The list of orders, and the one in the URL. */
@Component({
  selector: "app-orders",
  imports: [RouterLink],
  template: `
    <section>
      <h2>Your orders</h2>
      @if (orders.problem(); as problem) {
        <p role="alert">The orders cannot be loaded: {{ problem }} <button (click)="orders.load()">Try again</button></p>
      }
      <ul>
        @for (order of orders.all(); track order.id) {
          <li>
            <a [routerLink]="['/orders', order.id]">{{ order.id }}: {{ order.item }}</a>
          </li>
        }
      </ul>
      @if (id() && orders.all().length) {
        <p>Order {{ id() }}: {{ order()?.item ?? "unknown" }}</p>
      }
      <img src="/api/picture.svg" alt="A coat" width="48" height="48" />
      <a href="/api/report.csv" download>Download the report</a>
    </section>
  `,
})
export class Orders {
  readonly id = input<string>(); // of the route
  protected readonly orders = inject(OrderService);
  protected readonly order = computed(() => this.orders.all().find(({ id }) => `${id}` === this.id()));
}
