import { HttpClient } from "@angular/common/http";
import { Component, inject, signal } from "@angular/core";
import { RouterOutlet } from "@angular/router";

import { Devices } from "./devices";
import { Live } from "./live";
import { Upload } from "./upload";

/** The app. It stays when the session ends, so that nothing that the user has typed is lost. */
@Component({
  selector: "app-home",
  imports: [RouterOutlet, Devices, Live, Upload],
  template: `
    <router-outlet />
    <app-live />
    <app-upload />
    <section>
      <h2>Administration</h2>
      <button (click)="closeYear()">Close the year</button>
      <p>{{ closed() }}</p>
    </section>
    <app-devices />
  `,
})
export class Home {
  readonly #http = inject(HttpClient);
  protected readonly closed = signal("");

  protected closeYear() {
    this.#http.post<{ text: string }>("/api/admin/close-year", null).subscribe({
      next: ({ text }) => this.closed.set(text),
      error: ({ message }) => this.closed.set(message),
    });
  }
}
