import { DatePipe } from "@angular/common";
import { Component, computed, effect, inject, signal } from "@angular/core";
import { DeviceSession } from "@cloakroom-bff/client";
import { Cloakroom } from "@cloakroom-bff/client/angular";

/** The user's sessions on all devices. */
@Component({
  selector: "app-devices",
  imports: [DatePipe],
  template: `
    <section>
      <h2>Your devices</h2>
      <ul>
        @for (session of sessions(); track session.id) {
          <li>
            {{ session.device || "Unknown device" }}@if (session.current) {, this one} @else if (session.last_seen_at) {, last seen
            {{ session.last_seen_at | date: "medium" }}}
          </li>
        }
      </ul>
      <button (click)="endOthers()">Sign out the others</button>
    </section>
  `,
})
export class Devices {
  readonly #bff = inject(Cloakroom);
  readonly #sessionId = computed(() => this.#bff.session()?.id);
  protected readonly sessions = signal<DeviceSession[]>([]);

  constructor() {
    effect(() => {
      if (this.#sessionId()) this.#load();
    });
  }

  async #load() {
    this.sessions.set(await this.#bff.client.sessions().catch(() => []));
  }

  protected async endOthers() {
    await this.#bff.client.endOtherSessions();
    await this.#load();
  }
}
