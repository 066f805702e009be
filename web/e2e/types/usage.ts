// What an app writes with client.d.ts. It is checked, not run; each line after @ts-expect-error has to be an error.
import { createClient, ProblemError, type Session } from "../../client/client.js";

const client = createClient();
createClient({ prefix: "/auth" });

const session = await client.session();
if (session.authenticated) {
  const name: string | undefined = session.user.name;
  const expires: string | null = session.session.access_token_expires_at;
  console.log(name, expires, session.user["groups"]);
} else {
  // @ts-expect-error no user is signed in
  session.user.name;
}
const refreshed: Session = await client.refresh();

const response: Response = await client.fetch("/api/orders", { method: "POST", body: "{}", background: true });
await client.fetch(new URL("/api/me", location.href));
await client.fetch(new Request("/api/me"));

client.login();
client.login({ returnTo: "/", prompt: "login", loginHint: "a", acrValues: "b", maxAge: 0, uiLocales: "de" });
// @ts-expect-error the standard's spelling is for the URL
client.login({ return_to: "/" });
// @ts-expect-error a number of seconds
client.login({ maxAge: "1m" });
const left: void = client.logout({ returnTo: "/bye" });

const again: Promise<Session> = client.login({ window: true, signal: AbortSignal.timeout(1000), loginHint: "a" });
// @ts-expect-error only the wait for a window can be aborted
client.login({ signal: AbortSignal.timeout(1000) });
const name: string | undefined = client.current?.user?.name;
const { state } = client;
if (state.status === "expiring") console.log(state.seconds.toFixed(), state.reason);
if (state.status === "ended") console.log(state.reason?.length);
client.on("state", ({ status }) => console.log(status));
for (const { id, current, device } of await client.sessions()) if (!current && device) await client.endSession(id);
await client.endOtherSessions();
client.close();

const off: () => void = client.on("signed-out", (now) => console.log(now.authenticated));
off();
// @ts-expect-error there is no such event
client.on("signedout", () => {});

try {
  await client.session();
} catch (err) {
  if (err instanceof ProblemError) {
    const code: string | undefined = err.code;
    console.log(err.status, code, err.loginUrl, err.requestId, err.message);
  }
}

interface Claims {
  sub: string;
  roles: string[];
}
const typed = createClient<Claims>();
const mine = await typed.session();
if (mine.authenticated) mine.user.roles.includes("admin");
typed.on("signed-in", (now) => now.authenticated && now.user.roles);

console.log(refreshed, response, left, again, name);
