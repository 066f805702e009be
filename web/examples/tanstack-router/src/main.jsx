import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { createRouter, RouterProvider } from "@tanstack/react-router";
import { createRoot } from "react-dom/client";
import { CloakroomProvider } from "@cloakroom-bff/client/react";
import { followSession, queryDefaults } from "@cloakroom-bff/client/tanstack";

import { bff } from "./bff.js";
import { routeTree } from "./routes.jsx";
import "../../plain/app.css";

const queryClient = new QueryClient({ defaultOptions: queryDefaults });
followSession(queryClient, bff);
const router = createRouter({ routeTree, context: { queryClient }, defaultPendingComponent: () => <p>Loading…</p> });

createRoot(document.getElementById("root")).render(
  <CloakroomProvider client={bff}>
    <QueryClientProvider client={queryClient}>
      <RouterProvider router={router} />
    </QueryClientProvider>
  </CloakroomProvider>,
);
