import { signInNotice } from "@cloakroom-bff/client/notice";
import { afterEach, expect, test } from "vitest";

/** A client whose session has ended, for a reason that is not known yet. */
function endedClient() {
  const listeners = [];
  return {
    current: { authenticated: false },
    state: { status: "ended", reason: undefined },
    logins: [],
    on(_event, listener) {
      listeners.push(listener);
      return () => {};
    },
    async login(options) {
      this.logins.push(options);
    },
    learn(reason) {
      this.state = { status: "ended", reason };
      for (const listener of listeners) listener(this.state);
    },
  };
}

let off;
afterEach(() => off());

// A click that has begun would be lost with its button.
test("the notice keeps its button when the reason becomes known", () => {
  const client = endedClient();
  off = signInNotice(client);
  const dialog = document.querySelector("dialog");
  const button = dialog.querySelector("button");
  expect(dialog.textContent).not.toContain("not active");
  client.learn("idle");
  expect(document.querySelectorAll("dialog")).toHaveLength(1);
  expect(document.querySelector("dialog button")).toBe(button);
  expect(dialog.textContent).toContain("You were not active for a while. This page is kept.");
  button.click();
  client.learn("logout");
  button.click();
  expect(client.logins).toEqual([{ window: true }, { prompt: "login", window: true }]);
});
