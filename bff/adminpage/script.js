// The page works without this script. It asks before a session is revoked, and
// keeps the part of the page that changes up to date.

const dialog = document.querySelector("dialog");

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.dataset.confirm) return;
  event.preventDefault();
  dialog.querySelector("h2").textContent = form.dataset.title;
  dialog.querySelector("p").textContent = form.dataset.confirm;
  dialog.returnValue = "";
  dialog.onclose = () => {
    if (dialog.returnValue === "confirm") form.submit(); // which causes no other event
  };
  dialog.showModal();
});

const interval = 10_000; // ms

async function update() {
  const live = document.querySelector("#live");
  if (!live || document.hidden || dialog?.open) return;
  const response = await fetch("/admin/", { headers: { Accept: "text/html" } });
  if (response.status === 401 || response.status === 403) return location.assign("/admin/");
  if (!response.ok) return;
  const next = new DOMParser().parseFromString(await response.text(), "text/html").querySelector("#live");
  // So that no selection and no focus is lost.
  if (!next || live.contains(document.activeElement) || getSelection()?.type === "Range") return;
  const scrolled = live.querySelector(".scroll")?.scrollTop;
  live.replaceWith(next);
  if (scrolled) next.querySelector(".scroll")?.scrollTo(0, scrolled);
}

setInterval(() => update().catch(() => {}), interval); // a broker that restarts responds again soon
document.addEventListener("visibilitychange", () => update().catch(() => {}));
