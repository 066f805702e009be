import { useMutation, useQuery } from "@tanstack/react-query";

import { bff } from "./bff.js";

/** The user's sessions on all devices. */
export function Devices() {
  const { data: sessions = [], refetch } = useQuery({ queryKey: ["devices"], queryFn: () => bff.sessions() });
  const endOthers = useMutation({ mutationFn: () => bff.endOtherSessions(), onSettled: () => refetch() });
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
      <button onClick={() => endOthers.mutate()}>Sign out the others</button>
    </section>
  );
}
