import { useMutation, useQueryClient } from "@tanstack/react-query";
import { Outlet } from "@tanstack/react-router";
import { useSession } from "@cloakroom-bff/client/react";

import { bff, call } from "./bff.js";
import { Devices } from "./devices.jsx";
import { Live } from "./live.jsx";
import { ordersQuery } from "./orders.jsx";
import { Upload } from "./upload.jsx";

/** What is around the pages, with and without a session. */
export function Shell() {
  const { user } = useSession();
  return (
    <>
      <header>
        <h1>Orders</h1>
        <p>{user?.name ?? user?.sub}</p>
        {user && <button onClick={() => bff.logout({ returnTo: "/bff/signed-out" })}>Sign out</button>}
      </header>
      <Notice />
      <Outlet />
    </>
  );
}

/** What the state of the session means for the user. */
function Notice() {
  const { state } = useSession();
  const queryClient = useQueryClient();
  switch (state.status) {
    case "expiring":
      return (
        <p role="status">
          You will be signed out in {state.seconds} s. <button onClick={() => queryClient.fetchQuery(ordersQuery)}>Stay signed in</button>
        </p>
      );
    case "unreachable":
      return <p role="status">The app cannot be reached. It tries again.</p>;
    default:
      return null;
  }
}

/** The app. It stays when the session ends, so that nothing that the user has typed is lost. */
export function App() {
  const closeYear = useMutation({ mutationFn: () => call("/api/admin/close-year", { method: "POST" }) });
  return (
    <>
      <Outlet />
      <Live />
      <Upload />
      <section>
        <h2>Administration</h2>
        <button onClick={() => closeYear.mutate()}>Close the year</button>
        <p>{closeYear.data?.text ?? closeYear.error?.message}</p>
      </section>
      <Devices />
    </>
  );
}
