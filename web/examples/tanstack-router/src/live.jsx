import { useEffect, useState } from "react";
import { useSession } from "@cloakroom-bff/client/react";

/** An event stream and a WebSocket. Both end with the session, and start with the next. */
export function Live() {
  const { session } = useSession();
  const [ticks, setTicks] = useState(0);
  const [reply, setReply] = useState("");
  const [chat, setChat] = useState(/** @type {WebSocket | undefined} */ (undefined)); // while it is open
  useEffect(() => {
    if (!session) return;
    const stream = new EventSource("/api/ticks");
    stream.onmessage = () => setTicks((n) => n + 1);
    const socket = new WebSocket("/api/chat");
    socket.onopen = () => setChat(socket);
    socket.onmessage = ({ data }) => setReply(data);
    return () => {
      stream.close();
      socket.close();
      setChat(undefined);
    };
  }, [session?.id]);
  return (
    <section>
      <h2>Live</h2>
      <p>
        Events received: <output id="ticks">{ticks}</output>
      </p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          chat?.send(new FormData(event.currentTarget).get("text"));
        }}
      >
        <label>
          Message <input name="text" autoComplete="off" />
        </label>{" "}
        <button disabled={!chat}>Send</button>
      </form>
      <p>
        Last reply: <output>{reply}</output>
      </p>
    </section>
  );
}
