import { createApp } from "vue";
import { createRouter, createWebHistory } from "vue-router";
import { sessionOrSignIn } from "@cloakroom-bff/client/notice";
import { cloakroom } from "@cloakroom-bff/client/vue";

import App from "./App.vue";
import { bff } from "./bff.js";
import Orders from "./Orders.vue";
import "../../plain/app.css";

const router = createRouter({
  history: createWebHistory(),
  routes: [{ path: "/:orders(orders)?/:id(\\d+)?", component: Orders, props: true }],
});

// The guard leads users who are not signed in to the sign-in, and back to the URL. After an end on this page it shows a notice.
router.beforeEach(async ({ fullPath }) => (await sessionOrSignIn(bff, fullPath)).authenticated);

createApp(App).use(cloakroom(bff)).use(router).mount("#app");
