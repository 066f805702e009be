"use client";
import { useState } from "react";
import { CloakroomProvider, RequireSession, useSession } from "@cloakroom-bff/client/react";

import { bff, call } from "./bff.js";
import { Devices } from "./devices.jsx";
import { Live } from "./live.jsx";
import { Upload } from "./upload.jsx";

/** The pages for users who are signed in. Others are sent to the sign-in, and back to the URL. */
export default function Layout({ children }) {
  return (
    <CloakroomProvider client={bff}>
      <Header />
      <Notice />
      {/* The page stays when the session ends, so that nothing that the user has typed is lost. A notice covers it. */}
      <RequireSession fallback={<p>Loading…</p>}>
        {children}
        <Live />
        <Upload />
        <Administration />
        <Devices />
      </RequireSession>
    </CloakroomProvider>
  );
}

function Header() {
  const { user } = useSession();
  return (
    <header>
      <h1>Orders</h1>
      <p>{user?.name ?? user?.sub}</p>
      {user && <button onClick={() => bff.logout({ returnTo: "/bff/signed-out" })}>Sign out</button>}
    </header>
  );
}

/** What the state of the session means for the user. */
function Notice() {
  const { state } = useSession();
  switch (state.status) {
    case "expiring":
      return (
        <p role="status">
          You will be signed out in {state.seconds} s. <button onClick={() => bff.fetch("/api/orders")}>Stay signed in</button>
        </p>
      );
    case "unreachable":
      return <p role="status">The app cannot be reached. It tries again.</p>;
    default:
      return null;
  }
}

function Administration() {
  const [closed, setClosed] = useState("");
  const closeYear = () => call("/api/admin/close-year", { method: "POST" }).then(({ text }) => setClosed(text), (err) => setClosed(err.message));
  return (
    <section>
      <h2>Administration</h2>
      <button onClick={closeYear}>Close the year</button>
      <p>{closed}</p>
    </section>
  );
}
