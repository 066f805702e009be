import { useEffect, useState } from "react";
import { Outlet, useRevalidator, useRouteError } from "react-router";
import { useSession } from "@cloakroom-bff/client/react";

import { bff, call } from "./bff.js";
import { Devices } from "./devices.jsx";
import { Live } from "./live.jsx";
import { Upload } from "./upload.jsx";

/** The page. It stays when the session ends, so that nothing that the user has typed is lost. */
export function App() {
  const { user } = useSession();
  const { revalidate } = useRevalidator();
  const [closed, setClosed] = useState("");
  useEffect(() => bff.on("signed-in", () => revalidate()), []); // the orders are loaded again
  return (
    <>
      <header>
        <h1>Orders</h1>
        <p>{user?.name ?? user?.sub}</p>
        <button onClick={() => bff.logout({ returnTo: "/bff/signed-out" })}>Sign out</button>
      </header>
      <Notice />
      <Outlet />
      <Live />
      <Upload />
      <section>
        <h2>Administration</h2>
        <button onClick={() => call("/api/admin/close-year", { method: "POST" }).then(({ text }) => setClosed(text), (err) => setClosed(err.message))}>
          Close the year
        </button>
        <p>{closed}</p>
      </section>
      <Devices />
    </>
  );
}

/** What the state of the session means for the user. */
function Notice() {
  const { state } = useSession();
  const { revalidate } = useRevalidator();
  switch (state.status) {
    case "expiring":
      return (
        <p role="status">
          You will be signed out in {state.seconds} s. <button onClick={() => revalidate()}>Stay signed in</button>
        </p>
      );
    case "unreachable":
      return <p role="status">The app cannot be reached. It tries again.</p>;
    default:
      return null;
  }
}

/** Shown instead of the app if the orders cannot be loaded. It comes back by itself. */
export function Trouble() {
  const error = useRouteError();
  const { revalidate } = useRevalidator();
  const { state } = useSession();
  useEffect(() => {
    if (state.status === "signed-in") revalidate();
  }, [state.status]);
  return state.status === "signed-in" ? (
    <p role="alert">
      The orders cannot be loaded: {error.message} <button onClick={() => revalidate()}>Try again</button>
    </p>
  ) : (
    <Notice />
  );
}
