import { Component, provideZonelessChangeDetection, signal } from "@angular/core";
import { bootstrapApplication } from "@angular/platform-browser";

@Component({
  selector: "app-root",
  styles: "button { font-weight: bold; }",
  template: `<h1>Angular</h1>
    <p class="later">Styled by the style sheet</p>
    <button (click)="count.set(count() + 1)">Count {{ count() }}</button>`,
})
class App {
  readonly count = signal(0);
}

bootstrapApplication(App, { providers: [provideZonelessChangeDetection()] }).catch(console.error);
