// The page works without this script, which keeps it up to date.

const interval = 2_000; // ms

async function update() {
  const live = document.querySelector("#live");
  if (!live || document.hidden) return;
  const response = await fetch(location.pathname, { headers: { Accept: "text/html" } });
  if (!response.ok) return;
  const next = new DOMParser().parseFromString(await response.text(), "text/html").querySelector("#live");
  // So that no selection and no focus is lost.
  if (!next || live.contains(document.activeElement) || getSelection()?.type === "Range") return;
  const now = live.querySelectorAll("details");
  for (const [i, details] of next.querySelectorAll("details").entries()) {
    if (now[i]) details.open = now[i].open;
  }
  if (!next.isEqualNode(live)) live.replaceWith(next);
}

setInterval(() => update().catch(() => {}), interval); // a broker that restarts responds again soon
document.addEventListener("visibilitychange", () => update().catch(() => {}));
// The result of an action is not repeated when the page is loaded again.
if (location.search) history.replaceState(null, "", location.pathname);
