import { useEffect, useRef, useState } from "react";
import { useSession } from "@cloakroom-bff/client/react";

/** An event stream and a WebSocket. Both end with the session, and start with the next. */
export function Live() {
  const { session } = useSession();
  const [ticks, setTicks] = useState(0);
  const [reply, setReply] = useState("");
  const chat = useRef(/** @type {WebSocket | undefined} */ (undefined));
  useEffect(() => {
    if (!session) return;
    const stream = new EventSource("/api/ticks");
    stream.onmessage = () => setTicks((n) => n + 1);
    const socket = (chat.current = new WebSocket("/api/chat"));
    socket.onmessage = ({ data }) => setReply(data);
    return () => {
      stream.close();
      socket.close();
    };
  }, [session?.id]);
  const send = (form) => chat.current?.send(form.get("text"));
  return (
    <section>
      <h2>Live</h2>
      <p>
        Events received: <output id="ticks">{ticks}</output>
      </p>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          send(new FormData(event.currentTarget));
        }}
      >
        <label>
          Message <input name="text" autoComplete="off" />
        </label>{" "}
        <button>Send</button>
      </form>
      <p>
        Last reply: <output>{reply}</output>
      </p>
    </section>
  );
}
