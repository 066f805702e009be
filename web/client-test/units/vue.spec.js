import { expect, test } from "vitest";
import { createApp, h, nextTick } from "vue";

import { mockClient } from "@cloakroom-bff/client/testing";
import { cloakroom, useSession } from "@cloakroom-bff/client/vue";

test("useSession renders again when the session changes", async () => {
  const client = mockClient();
  const page = document.createElement("div");
  const app = createApp({
    setup() {
      const { authenticated, user, state, expiry } = useSession();
      return () => h("p", `${authenticated.value ? user.value.name : "nobody"} ${state.value.status} ${expiry.value?.seconds ?? ""}`);
    },
  });
  app.use(cloakroom(client)).mount(page);
  expect(page.textContent).toBe("nobody signed-out ");
  client.signIn({ sub: "alice", name: "Alice" });
  await nextTick();
  expect(page.textContent).toBe("Alice signed-in ");
  client.expire(30);
  await nextTick();
  expect(page.textContent).toBe("Alice expiring 30");
  client.signOut("idle");
  await nextTick();
  expect(page.textContent).toBe("nobody ended ");
  app.unmount();
  client.signIn({ sub: "alice" }); // no listener is left
});
