import { createRoot } from "react-dom/client";
import { createBrowserRouter, RouterProvider } from "react-router";
import { sessionOrSignIn } from "@cloakroom-bff/client/notice";
import { CloakroomProvider } from "@cloakroom-bff/client/react";

import { App, Trouble } from "./app.jsx";
import { bff, call } from "./bff.js";
import { Order, Orders } from "./orders.jsx";
import "../../plain/app.css";

/** Returns a loader that leads users who are not signed in to the sign-in, and back to the URL. @param {() => Promise<any>} load */
const signedIn = (load) => async ({ request }) => {
  await bff.session(); // Trouble says that the broker cannot be reached
  const { pathname, search } = new URL(request.url);
  const { authenticated } = await sessionOrSignIn(bff, pathname + search + location.hash);
  if (authenticated) return load();
  return new Promise(() => {}); // the page is about to be left
};

const router = createBrowserRouter([
  {
    id: "orders",
    path: "/",
    loader: signedIn(() => call("/api/orders")),
    Component: App,
    ErrorBoundary: Trouble,
    HydrateFallback: () => <p>Loading…</p>,
    children: [
      { index: true, Component: Orders },
      { path: "orders/:id", Component: Order },
    ],
  },
]);

createRoot(document.getElementById("root")).render(
  <CloakroomProvider client={bff}>
    <RouterProvider router={router} />
  </CloakroomProvider>,
);
