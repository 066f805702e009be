import { Component, computed, effect, inject, signal } from "@angular/core";
import { Cloakroom } from "@cloakroom-bff/client/angular";

/** An event stream and a WebSocket. Both end with the session, and start with the next. */
@Component({
  selector: "app-live",
  template: `
    <section>
      <h2>Live</h2>
      <p>Events received: <output id="ticks">{{ ticks() }}</output></p>
      <form (submit)="send($event, text.value)">
        <label>Message <input #text name="text" autocomplete="off" /></label> <button [disabled]="!chat()">Send</button>
      </form>
      <p>Last reply: <output>{{ reply() }}</output></p>
    </section>
  `,
})
export class Live {
  protected readonly ticks = signal(0);
  protected readonly reply = signal("");
  readonly #session = inject(Cloakroom).session;
  readonly #sessionId = computed(() => this.#session()?.id);
  protected readonly chat = signal<WebSocket | undefined>(undefined); // while it is open

  constructor() {
    effect((onCleanup) => {
      if (!this.#sessionId()) return;
      const stream = new EventSource("/api/ticks");
      stream.onmessage = () => this.ticks.update((n) => n + 1);
      const socket = new WebSocket("/api/chat");
      socket.onopen = () => this.chat.set(socket);
      socket.onmessage = ({ data }) => this.reply.set(data);
      onCleanup(() => {
        stream.close();
        socket.close();
        this.chat.set(undefined);
      });
    });
  }

  protected send(event: Event, text: string) {
    event.preventDefault();
    this.chat()?.send(text);
  }
}
