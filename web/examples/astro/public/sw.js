addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
// Navigations go to the server, see "Service workers" in docs/browser.md.
addEventListener("fetch", (event) => {
  if (event.request.url.endsWith("/from-worker")) event.respondWith(new Response("worker"));
});
