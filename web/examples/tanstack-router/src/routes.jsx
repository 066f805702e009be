import { createRootRouteWithContext, createRoute } from "@tanstack/react-router";
import { requireSession } from "@cloakroom-bff/client/tanstack";

import { App, Shell } from "./app.jsx";
import { bff } from "./bff.js";
import { Order, Orders, ordersQuery } from "./orders.jsx";

const root = createRootRouteWithContext()({ component: Shell });

// The guard leads users who are not signed in to the sign-in, and back to the URL.
const app = createRoute({
  getParentRoute: () => root,
  id: "app",
  beforeLoad: requireSession(bff),
  loader: ({ context }) => void context.queryClient.prefetchQuery(ordersQuery),
  component: App,
});
const orders = createRoute({ getParentRoute: () => app, path: "/", component: Orders });
const order = createRoute({ getParentRoute: () => app, path: "/orders/$id", component: Order });

export const routeTree = root.addChildren([app.addChildren([orders, order])]);
