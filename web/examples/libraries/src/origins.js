// Reports an error as SDKs of error trackers do: the endpoint is made of a DSN.
const dsn = new URL("http://0123456789abcdef0123456789abcdef@errors.localhost:1/42");

const root = document.querySelector("#root");
try {
  const response = await fetch(`${dsn.origin}/api${dsn.pathname}/envelope/?sentry_key=${dsn.username}`, {
    method: "POST",
    body: JSON.stringify({ message: "an error" }),
  });
  root.textContent = `reported: ${response.status}`;
} catch (err) {
  root.textContent = `failed: ${err.name}`;
}
