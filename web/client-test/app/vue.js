import { createApp, h } from "vue";

import { createClient } from "@cloakroom-bff/client";
import { cloakroom, useSession } from "@cloakroom-bff/client/vue";

createApp({
  setup() {
    const { client, authenticated, user, state } = useSession();
    return () => [
      h("p", { id: "user" }, `${authenticated.value ? user.value.name : "nobody"} ${state.value.status} ${state.value.reason ?? ""}`),
      h("input", { "aria-label": "Note" }),
      h("button", { onClick: () => client.login({ window: true }) }, "Sign in"),
      h("button", { onClick: () => client.logout() }, "Sign out"),
    ];
  },
})
  .use(cloakroom(createClient()))
  .mount("main");
