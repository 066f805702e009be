import { flushSync, mount, unmount } from "svelte";
import { expect, test } from "vitest";

import { sessionStore } from "@cloakroom-bff/client/svelte";
import { mockClient } from "@cloakroom-bff/client/testing";
import Name from "./Name.svelte";

test("the store renders again when the session changes", async () => {
  const client = mockClient();
  const target = document.createElement("div");
  const app = mount(Name, { target, props: { session: sessionStore(client) } });
  const text = () => (flushSync(), target.textContent.trim());
  expect(text()).toBe("nobody signed-out");
  client.signIn({ sub: "alice", name: "Alice" });
  expect(text()).toBe("Alice signed-in");
  client.expire(30);
  expect(text()).toBe("Alice expiring 30");
  client.signOut("idle");
  expect(text()).toBe("nobody ended");
  await unmount(app);
});
