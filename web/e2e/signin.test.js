// Sign-in and sign-out, as far as they depend on what a browser sends: the initiator of a navigation,
// cookies, and requests of a service worker.
import assert from "node:assert/strict";
import { mkdtemp, writeFile } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { launch, savePages } from "./browser.js";
import { build, cloakroom, freePort, start } from "./process.js";

/** The app: a page that shows the user, and a service worker that forwards navigations. */
const files = {
  "index.html": `<!doctype html><html lang="en"><meta charset="utf-8"><title>App</title><p id="user"></p><script type="module" src="/app.js"></script></html>`,
  "app.js": `
    import { createClient } from "/bff/client.js";
    globalThis.client = createClient();
    const { authenticated, user } = await client.session();
    document.querySelector("#user").textContent = authenticated ? user.sub : "nobody";`,
  "worker.js": `
    addEventListener("install", () => skipWaiting());
    addEventListener("activate", (event) => event.waitUntil(clients.claim()));
    addEventListener("fetch", (event) => {
      if (event.request.mode === "navigate") event.respondWith(fetch(event.request));
    });`,
};

/** Starts a server. @param {http.RequestListener} handler */
async function listen(handler) {
  const server = http.createServer(handler);
  await new Promise((listening) => server.listen(0, "127.0.0.1", () => listening(undefined)));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    stop() {
      server.closeAllConnections();
      server.close();
    },
  };
}

for (const mode of ["query", "form_post"]) {
  describe(`signing in with response_mode ${mode}`, { timeout: 180_000 }, () => {
    /** @type {import("playwright-core").Browser} */
    let browser;
    let app, elsewhere, upstream;
    /** @type {{ url: string, authorization: string | undefined, site: string | undefined }[]} the requests that the upstream received */
    const received = [];
    const running = [];

    before(async () => {
      const [port, adminPort] = [await freePort(), await freePort()];
      app = `http://localhost:${port}`;
      upstream = await listen((request, response) => {
        received.push({ url: request.url, authorization: request.headers.authorization, site: request.headers["sec-fetch-site"] });
        response.setHeader("Content-Type", "text/html");
        response.end(`<!doctype html><title>Upstream</title><script>localStorage.setItem("ran", location.href)</script>`);
      });
      elsewhere = await listen((request, response) => {
        response.setHeader("Content-Type", "text/html");
        response.end(`<!doctype html><title>Elsewhere</title><a href="${app}/bff/login?return_to=${encodeURIComponent(new URL(request.url, app).searchParams.get("to"))}">Go</a>`);
      });
      running.push(upstream, elsewhere);
      const backend = await start(await build("./internal/devidp/cmd/devidp"), ["--redirect-uri", `${app}/bff/callback`, "--post-logout-redirect-uri", `${app}/bff/logout/callback`], {
        ready: /^(\{.*"issuer".*\})$/m,
      });
      running.push(backend);
      const { issuer, client_id, client_secret } = JSON.parse(backend.match[1]);
      const directory = await mkdtemp(join(tmpdir(), "cloakroom-"));
      for (const [name, text] of Object.entries(files)) await writeFile(join(directory, name), text);
      const file = join(await mkdtemp(join(tmpdir(), "cloakroom-")), "cloakroom.yaml");
      const route = { upstream: upstream.url, token: "user", csrf: "fetch-metadata" };
      const config = {
        server: { listen: `127.0.0.1:${port}`, public_url: app, admin_listen: `127.0.0.1:${adminPort}` },
        oidc: { issuer, client_id, client_secret, response_mode: mode },
        routes: [{ path: "/files/", ...route }, { path: "/docs/", ...route, documents: "allow" }],
        frontend: { dir: directory },
      };
      await writeFile(file, JSON.stringify(config)); // JSON is YAML
      running.push(await start(await cloakroom(), ["serve", "--config", file], { ready: /"msg":"listening"/ }));
      for (const deadline = Date.now() + 15_000; !(await fetch(`http://127.0.0.1:${adminPort}/readyz`).catch(() => ({ ok: false }))).ok; ) {
        assert.ok(Date.now() < deadline, "the broker is not ready");
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      browser = await launch();
    });
    after(async () => {
      await browser?.close();
      for (const program of running.reverse()) await program.stop();
    });

    /**
     * Registers a test with its own browser profile.
     *
     * @param {string} title
     * @param {(context: import("playwright-core").BrowserContext) => Promise<void>} steps
     */
    function journey(title, steps) {
      test(title, async () => {
        const context = await browser.newContext({ baseURL: app });
        context.setDefaultTimeout(30_000); // for busy machines
        received.length = 0;
        try {
          await steps(context);
        } catch (err) {
          await savePages(context, `${mode} ${title}`);
          throw err;
        } finally {
          await context.close();
        }
      });
    }

    /** Waits until the app shows the user. @param {import("playwright-core").Page} page @param {string} user */
    const shows = (page, user) => page.locator("#user", { hasText: new RegExp(`^${user}$`) }).waitFor();

    /** Selects alice on the provider's page. @param {import("playwright-core").Page} page */
    const selectAlice = (page) => page.locator('button[name="user"][value="alice"]').click();

    /** @param {import("playwright-core").Page} page */
    const ran = (page) => page.evaluate(() => localStorage.getItem("ran"));

    journey("return_to from another site cannot lead under a route", async (context) => {
      const page = await context.newPage();
      for (const hasSession of [false, true]) { // at the provider
        for (const to of ["/files/x.html", "/docs/x.html", "/%66iles/x.html", "/bff/logout/callback"]) {
          await page.goto(`${elsewhere.url}/?to=${encodeURIComponent(to)}`);
          await page.locator("a").click();
          if (!hasSession && to === "/files/x.html") await selectAlice(page);
          await page.waitForURL(`${app}/`);
          await shows(page, "alice");
          assert.equal(await ran(page), null, "a script of the upstream ran on the app's origin");
          if (!hasSession) await context.clearCookies({ name: /^cloakroom-\d+$/ });
        }
      }
      assert.deepEqual(received, []);
    });

    journey("return_to from the address bar cannot lead under a route", async (context) => {
      const page = await context.newPage();
      await page.goto("/bff/login?return_to=/docs/x.html");
      await selectAlice(page);
      await page.waitForURL(`${app}/`);
      await shows(page, "alice");
      assert.deepEqual(received, []);
    });

    journey("the app can return only under a route that allows documents", async (context) => {
      const page = await context.newPage();
      await page.goto("/");
      await shows(page, "nobody");
      await page.evaluate(() => location.assign("/bff/login?return_to=/files/x.html"));
      await selectAlice(page);
      await page.waitForURL(`${app}/`);
      await shows(page, "alice");
      assert.deepEqual(received, []);

      await page.evaluate(() => location.assign("/bff/login?return_to=/docs/x.html"));
      await page.waitForURL(`${app}/docs/x.html`);
      assert.equal(await page.title(), "Upstream");
      assert.deepEqual(received.map(({ url, site }) => ({ url, site })), [{ url: "/docs/x.html", site: "same-origin" }]);
      assert.match(received[0].authorization ?? "", /^Bearer /);
    });

    journey("six restored tabs return to their pages", async (context) => {
      const pages = [];
      for (let i = 0; i < 6; i++) {
        const page = await context.newPage();
        await page.goto(`/bff/login?return_to=/tab${i}`);
        await page.locator('button[name="user"][value="alice"]').waitFor();
        pages.push(page);
      }
      for (const [i, page] of pages.entries()) {
        await selectAlice(page);
        await page.waitForURL(`${app}/tab${i}`);
        await shows(page, "alice");
      }
    });

    journey("sign-in works with a service worker that forwards navigations", async (context) => {
      const page = await context.newPage();
      await page.goto("/");
      await page.evaluate(async () => {
        await navigator.serviceWorker.register("/worker.js");
        if (!navigator.serviceWorker.controller) await new Promise((controlled) => navigator.serviceWorker.addEventListener("controllerchange", controlled, { once: true }));
      });
      await page.goto("/inside");
      assert.ok(await page.evaluate(() => navigator.serviceWorker.controller !== null));
      await shows(page, "nobody");
      await page.evaluate(() => client.login());
      await selectAlice(page);
      await page.waitForURL(`${app}/inside`);
      await shows(page, "alice");

      // In a frame of another site the provider gets no cookie, so it has no session of alice.
      await context.clearCookies({ name: /^cloakroom-\d+$/ });
      assert.equal(await page.evaluate(() => client.silentLogin({ timeout: 120_000 })), false);

      // Not under a route: the worker hides the initiator of a navigation.
      await page.evaluate(() => location.assign("/bff/login?return_to=/docs/x.html"));
      await page.waitForURL(`${app}/`);
      await shows(page, "alice");
      assert.deepEqual(received, []);
      await page.evaluate(() => client.logout());
      await page.waitForURL(`${app}/`);
      await shows(page, "nobody");
    });

    journey("a script that signs out reads no ID token", async (context) => {
      const page = await context.newPage();
      const urls = [];
      page.on("request", (request) => urls.push(request.url()));
      await page.goto("/");
      await page.evaluate(() => client.login());
      await selectAlice(page);
      await shows(page, "alice");
      const { redirect_to: redirectTo } = await page.evaluate(async () => {
        const response = await fetch("/bff/logout", { method: "POST", headers: { "X-CSRF": "1", Accept: "application/json" } });
        return response.json();
      });
      assert.match(redirectTo, /^\/bff\/logout\/continue\?/);
      assert.doesNotMatch(redirectTo + (await page.evaluate(() => document.cookie)), /eyJ|logout=/);
      // A fetch of the path is rejected, and does not use it up.
      assert.equal(await page.evaluate(async (to) => (await fetch(to)).status, redirectTo), 401);
      await page.evaluate((to) => location.assign(to), redirectTo);
      await page.waitForURL(`${app}/`);
      await shows(page, "nobody");
      assert.ok(urls.some((url) => /\/logout\?.*id_token_hint=eyJ/.test(url)), "the provider received no ID token");
      await page.goto(redirectTo); // a second time
      assert.equal(page.url(), `${app}/`);
      assert.deepEqual((await context.cookies(app)).filter((c) => c.name.includes("cloakroom")), []);
    });
  });
}
