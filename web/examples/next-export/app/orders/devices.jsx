import { useEffect, useState } from "react";
import { useSession } from "@cloakroom-bff/client/react";

import { bff } from "./bff.js";

/** The user's sessions on all devices. */
export function Devices() {
  const { session } = useSession();
  const [sessions, setSessions] = useState(/** @type {import("@cloakroom-bff/client").DeviceSession[]} */ ([]));
  const load = () => bff.sessions().then(setSessions, () => setSessions([]));
  useEffect(() => void load(), [session?.id]);
  return (
    <section>
      <h2>Your devices</h2>
      <ul>
        {sessions.map(({ id, device, current, last_seen_at: seen }) => (
          <li key={id}>
            {device || "Unknown device"}
            {current ? ", this one" : seen && `, last seen ${new Date(seen).toLocaleString()}`}
          </li>
        ))}
      </ul>
      <button onClick={() => bff.endOtherSessions().then(load)}>Sign out the others</button>
    </section>
  );
}
