import { createApp } from "vue";
import { createRouter, createWebHistory } from "vue-router";
import { cloakroom } from "@cloakroom-bff/client/vue";

import App from "./App.vue";
import { bff } from "./bff.js";
import Orders from "./Orders.vue";
import "../../plain/app.css";

const router = createRouter({
  history: createWebHistory(),
  routes: [{ path: "/:orders(orders)?/:id(\\d+)?", component: Orders, props: true }],
});

// The guard leads users who are not signed in to the sign-in, and back to the URL.
router.beforeEach(async ({ fullPath }) => {
  const { authenticated } = await bff.session().catch(() => ({ authenticated: true })); // App says that it cannot be reached
  if (authenticated) return true;
  bff.login({ returnTo: fullPath });
  return false;
});

createApp(App).use(cloakroom(bff)).use(router).mount("#app");
