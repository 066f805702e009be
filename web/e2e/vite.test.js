// A real Vite behind the broker (frontend.url), and in front of it (server.proxy).
import assert from "node:assert/strict";
import { mkdir, mkdtemp, readFile, writeFile } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { closeBrowser, hotReloadConnects, launch } from "./browser.js";
import { freePort, repository, start } from "./process.js";
import { serve } from "./serve.js";

const vite = join(repository, "web/e2e/node_modules/vite/bin/vite.js");

/** The app. Its message is in a module that accepts updates. The server tells at /seen which requests it got. */
const files = {
  "index.html": `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>App</title></head>
<body><p id="message"></p><p id="user"></p><a href="/bff/login?return_to=/deep/link">Sign in</a>
<script type="module" src="/src/main.js"></script></body></html>`,
  "src/main.js": `
import { message } from "./message.js";
const show = (text) => (document.querySelector("#message").textContent = text);
show(message);
import.meta.hot.accept("./message.js", (module) => show(module.message));
const response = await fetch("/bff/session", { headers: { "X-CSRF": "1" } });
document.querySelector("#user").textContent = response.ok ? ((await response.json()).user?.sub ?? "nobody") : await response.text();`,
  "src/message.js": `export const message = "first";\n`,
};

/** Creates the app's folder. @param {string} proxy the value of server.proxy */
async function createApp(proxy = "undefined") {
  const dir = await mkdtemp(join(tmpdir(), "vite-"));
  await mkdir(join(dir, "src"));
  for (const [name, text] of Object.entries(files)) await writeFile(join(dir, name), text);
  await writeFile(
    join(dir, "vite.config.js"),
    `const seen = [];
const look = { name: "look", configureServer(server) {
  server.middlewares.use((request, response, next) => {
    if (request.url === "/seen") return response.end(JSON.stringify(seen));
    const { host, origin, cookie, authorization } = request.headers;
    seen.push({ url: request.url, host, origin, cookie, authorization });
    next();
  });
} };
export default { plugins: [look], clearScreen: false, server: { proxy: ${proxy} } };
`,
  );
  return dir;
}

/** Starts Vite. @param {string} dir @param {number} port */
const startVite = (dir, port) =>
  start(process.execPath, [vite, dir, "--host", "127.0.0.1", "--port", `${port}`, "--strictPort"], { ready: /ready in/ });

/** Starts an API whose one event stream does not end by itself. @returns {Promise<http.Server>} */
function startEvents() {
  const server = http.createServer((request, response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.write("data: hello\n\n");
  });
  server.unref(); // a test that fails early does not stop it
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

/** Signs out in the page, while streams of session events and of an API are open. Both have to end. */
async function eventsUntilLogout() {
  const events = new EventSource("/bff/session/events");
  const next = (type) => new Promise((resolve) => events.addEventListener(type, ({ data }) => resolve(JSON.parse(data)), { once: true }));
  const state = await next("session-changed");
  const ended = next("session-ended");
  const stream = await fetch("/events/x"); // open, its end is awaited below
  await fetch("/bff/logout", { method: "POST", headers: { "X-CSRF": "1", Accept: "application/json" } });
  const reason = await ended;
  while (events.readyState !== EventSource.CLOSED) await new Promise((resolve) => events.addEventListener("error", resolve, { once: true }));
  return { first: state.user.sub, ended: reason, again: events.readyState, stream: await stream.text() };
}

/** Signs in at the development provider. @param {import("playwright-core").Page} page */
async function signIn(page) {
  await page.getByRole("link", { name: "Sign in" }).click();
  await page.locator('button[name="user"][value="alice"]').click();
}

describe("Vite", { timeout: 180_000 }, () => {
  /** @type {import("playwright-core").Browser} */
  let browser;
  before(async () => {
    browser = await launch();
  });
  after(() => closeBrowser(browser, "vite"));

  test("behind the broker: hot reload, sign-in, and an outage", async () => {
    const vitePort = await freePort();
    const dir = await createApp();
    const broker = await serve({ frontend: { url: `http://localhost:${vitePort}` } });
    let server;
    try {
      const context = await browser.newContext({ baseURL: broker.baseURL });
      context.setDefaultTimeout(30_000);
      const page = await context.newPage();
      const sockets = [];
      const errors = [];
      page.on("websocket", (socket) => sockets.push(new URL(socket.url()).host));
      page.on("pageerror", (err) => errors.push(err.message));

      const down = await page.goto("/deep/link");
      assert.equal(down.status(), 503);
      assert.match(await page.locator("main").innerText(), new RegExp(`http://localhost:${vitePort}`));

      const connected = hotReloadConnects(page);
      server = await startVite(dir, vitePort);
      await page.locator("#message", { hasText: "first" }).waitFor(); // the page has reloaded itself
      await page.locator("#user", { hasText: "nobody" }).waitFor();
      const { headers } = await page.evaluate(async () => {
        const response = await fetch(location.href, { headers: { Accept: "text/html" } });
        return { headers: Object.fromEntries(response.headers) };
      });
      assert.equal(headers["content-security-policy"], undefined);
      assert.match(headers["content-security-policy-report-only"], /default-src 'self'/);

      await connected;
      await page.evaluate(() => (globalThis.notReloaded = true));
      await writeFile(join(dir, "src/message.js"), `export const message = "second";\n`);
      await page.locator("#message", { hasText: "second" }).waitFor();
      assert.equal(await page.evaluate(() => globalThis.notReloaded), true, "the update reloaded the page");
      assert.deepEqual([...new Set(sockets)], [new URL(broker.baseURL).host], "WebSockets to other hosts than the broker");

      await signIn(page);
      await page.locator("#user", { hasText: "alice" }).waitFor();
      assert.equal(page.url(), `${broker.baseURL}/deep/link`);
      await page.reload();
      const seen = await (await fetch(`http://127.0.0.1:${vitePort}/seen`)).json();
      assert.ok(seen.length > 5, "Vite recorded its requests");
      for (const request of seen) {
        assert.equal(request.host, `localhost:${vitePort}`, request.url);
        assert.equal(request.cookie, undefined, request.url);
        assert.equal(request.authorization, undefined, request.url);
      }

      await server.stop();
      await page.goto("/deep/link");
      await page.locator("main", { hasText: "does not respond" }).waitFor();
      server = await startVite(dir, vitePort);
      await page.locator("#message", { hasText: "second" }).waitFor();
      await page.locator("#user", { hasText: "alice" }).waitFor();
      assert.deepEqual(errors, []);
      await context.close();
    } finally {
      await server?.stop();
      await broker.stop();
    }
  });

  test("in front of the broker: sign-in, and the error without changeOrigin: false", async () => {
    const vitePort = await freePort();
    const api = await startEvents();
    const routes = [{ path: "/events/", upstream: `http://127.0.0.1:${api.address().port}`, token: "user" }];
    const broker = await serve({ publicURL: `http://localhost:${vitePort}`, routes });
    const proxy = (changeOrigin) => `{ "^/(bff|events)/": { target: "${broker.address}", changeOrigin: ${changeOrigin}, ws: true } }`;
    const dir = await createApp(proxy(false));
    let server;
    try {
      server = await startVite(dir, vitePort);
      const context = await browser.newContext({ baseURL: broker.baseURL });
      context.setDefaultTimeout(30_000);
      const page = await context.newPage();
      await page.goto("/");
      await page.locator("#user", { hasText: "nobody" }).waitFor();
      await signIn(page);
      await page.locator("#user", { hasText: "alice" }).waitFor();
      assert.equal(page.url(), `${broker.baseURL}/deep/link`);
      assert.deepEqual(await page.evaluate(eventsUntilLogout), {
        first: "alice",
        ended: { reason: "logout" },
        again: 2, // EventSource.CLOSED: the new request got 401
        stream: "data: hello\n\n",
      });
      await server.stop();

      const config = join(dir, "vite.config.js");
      await writeFile(config, (await readFile(config, "utf8")).replace("changeOrigin: false", "changeOrigin: true"));
      server = await startVite(dir, vitePort);
      await page.goto("/");
      await page.locator("#user", { hasText: "changeOrigin" }).waitFor();
      const login = await page.goto("/bff/login");
      assert.equal(login.status(), 421);
      assert.match(await page.locator("main").innerText(), /changeOrigin/);
      await context.close();
    } finally {
      await server?.stop();
      await broker.stop();
      api.close();
      api.closeAllConnections();
    }
  });
});
