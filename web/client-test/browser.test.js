// The package in Chromium, built by Vite with React and with Vue, behind the real broker.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { signIn as signInAs } from "@cloakroom-bff/client/testing";
import { closeBrowser, launch, streamOpens } from "../e2e/browser.js";
import { cloakroom, freePort, start } from "../e2e/process.js";
import { serve } from "../e2e/serve.js";

const here = new URL(".", import.meta.url).pathname;
const app = join(here, "app");
const vite = join(here, "node_modules/vite/bin/vite.js");

/** Chooses alice at the development provider. @param {import("playwright-core").Page} page */
const chooseAlice = (page) => page.locator('button[name="user"][value="alice"]').click();

/** Signs alice in again by the notice of a page, which keeps its letter. */
async function chooseAliceInWindow(context, page, reason) {
  await page.getByRole("dialog").getByText(reason).waitFor();
  const [popup] = await Promise.all([context.waitForEvent("page"), page.getByText("Sign in again").click()]);
  await Promise.all([streamOpens(page), chooseAlice(popup)]);
  await page.getByRole("dialog").waitFor({ state: "detached" });
  await shows(page, /Alice.* signed-in/);
  assert.equal(await page.getByLabel("Letter").inputValue(), "a long letter");
}

/** Waits until a page shows a user and a state. @param {import("playwright-core").Page} page @param {RegExp} text */
const shows = (page, text) => page.locator("#user", { hasText: text }).waitFor();

describe("the package in Chromium", { timeout: 300_000 }, () => {
  let browser;
  let broker;
  let dist;
  before(async () => {
    dist = mkdtempSync(join(tmpdir(), "cloakroom-app-"));
    execFileSync(process.execPath, [vite, "build", "--emptyOutDir", "--logLevel", "warn"], { cwd: app, env: { ...process.env, OUT: dist }, stdio: "inherit" });
    browser = await launch();
    broker = await serve({ frontend: { dir: dist } });
  });
  after(async () => {
    await closeBrowser(browser, "client");
    await broker?.stop();
    rmSync(dist, { recursive: true });
  });

  /** Runs steps in a browser profile of its own. */
  async function visit(steps, baseURL = broker.baseURL) {
    const context = await browser.newContext({ baseURL });
    context.setDefaultTimeout(30_000);
    await steps(context, async (path) => {
      const page = await context.newPage();
      await page.goto(path);
      return page;
    });
    await context.close(); // not after a failure: closeBrowser saves its pages
  }

  test("React: a guard, and a window that keeps what the user typed", () =>
    visit(async (context, open) => {
      const page = await open("/");
      await Promise.all([streamOpens(page), chooseAlice(page)]); // the guard has navigated
      await shows(page, /Alice.* signed-in/);
      await page.getByLabel("Letter").fill("a long letter");

      const other = await open("/vue");
      await shows(other, /Alice.* signed-in/);
      await other.getByText("Sign out").click();
      await page.getByRole("alert").waitFor();
      await page.getByText("signed out: logout").waitFor();
      assert.equal(await page.getByLabel("Letter").inputValue(), "a long letter");

      const [popup] = await Promise.all([context.waitForEvent("page"), page.getByText("Sign in again").click()]);
      await chooseAlice(popup);
      await shows(page, /Alice.* signed-in/);
      if (!popup.isClosed()) await popup.waitForEvent("close");
      assert.equal(await page.getByLabel("Letter").inputValue(), "a long letter");
      assert.equal(new URL(page.url()).pathname, "/");
    }));

  test("React: after a revocation the provider's session signs no user in", () =>
    visit(async (context, open) => {
      const page = await open("/?notice");
      await Promise.all([streamOpens(page), chooseAlice(page)]);
      await shows(page, /Alice.* signed-in/);
      const errors = [];
      page.on("console", (message) => message.text().includes("Content Security Policy") && errors.push(message.text()));
      await page.getByLabel("Letter").fill("a long letter");
      await page.evaluate(() => window.client.endSession(window.client.current.session.id));
      // Another device revokes a session by its ID. From this one, it counts as a logout.
      await chooseAliceInWindow(context, page, "in another tab");

      const phone = await browser.newContext({ baseURL: broker.baseURL });
      const other = await phone.newPage();
      await other.goto("/?notice");
      await chooseAlice(other);
      await shows(other, /Alice.* signed-in/);
      await other.evaluate(() => window.client.endOtherSessions());
      await page.getByText("from another device").waitFor();
      assert.equal(new URL(page.url()).pathname, "/");
      const box = await page.getByRole("dialog").boundingBox();
      const { width, height } = page.viewportSize();
      assert.deepEqual([box.x, box.y, box.width, box.height], [0, 0, width, height]);
      await page.keyboard.press("Escape");
      await page.keyboard.press("Escape");
      await page.getByRole("dialog").waitFor(); // it may be closed for a moment

      // Neither a reload nor another tab signs in without the page of the provider.
      for (const path of ["/?notice", "/bff/login"]) {
        const tab = await open(path);
        await tab.locator('button[name="user"][value="alice"]').waitFor();
        await tab.close();
      }
      await chooseAliceInWindow(context, page, "from another device");
      assert.deepEqual(errors, []);

      await other.evaluate(() => window.client.endOtherSessions());
      await page.getByText("from another device").waitFor();
      await page.reload();
      await page.locator('button[name="user"][value="alice"]').waitFor();
      await phone.close();
    }));

  test("React: when another user signs in, nothing of the first one stays", () =>
    visit(async (context, open) => {
      const page = await open("/?notice");
      await chooseAlice(page);
      await shows(page, /Alice.* signed-in/);
      await page.getByLabel("Letter").fill("a letter of alice");
      await page.evaluate(() => window.client.endSession(window.client.current.session.id));
      const [popup] = await Promise.all([context.waitForEvent("page"), page.getByText("Sign in again").click()]);
      await popup.locator('button[name="user"][value="bob"]').click();
      await shows(page, /Bob.* signed-in/);
      await page.waitForFunction(() => document.querySelector("textarea")?.value === ""); // it may be loading again
    }));

  test("Vue: sign-in in a window, under Cross-Origin-Opener-Policy", () =>
    visit(async (context, open) => {
      const page = await context.newPage();
      const response = await page.goto("/vue");
      assert.equal(response.headers()["cross-origin-opener-policy"], "same-origin");
      await shows(page, /nobody signed-out/);
      await page.getByLabel("Note").fill("a note");
      const [popup] = await Promise.all([context.waitForEvent("page"), page.getByText("Sign in").click()]);
      await chooseAlice(popup);
      await shows(page, /Alice.* signed-in/);
      if (!popup.isClosed()) await popup.waitForEvent("close");
      assert.equal(await page.getByLabel("Note").inputValue(), "a note");
    }));

  test("one stream for all tabs; the next tab takes it over", () =>
    visit(async (context, open) => {
      let streams = 0;
      context.on("response", (response) => (streams += response.url().includes("/session/events") && response.ok() ? 1 : 0));
      const first = await open("/");
      await chooseAlice(first);
      await shows(first, /Alice.* signed-in/);
      const second = await open("/vue");
      const third = await open("/vue");
      for (const page of [second, third]) await shows(page, /Alice.* signed-in/);
      await until(() => streams === 1);
      await first.close();
      await until(() => streams === 2);
      // Ended at the broker, by a request that no tab knows of.
      const response = await context.request.post("/bff/logout", { headers: { "X-CSRF": "1", Accept: "application/json" } });
      assert.equal(response.status(), 200);
      for (const page of [second, third]) await shows(page, /nobody ended logout/);
    }));

  test("two tabs sign out at once", () =>
    visit(async (context, open) => {
      const first = await open("/");
      await chooseAlice(first);
      await shows(first, /Alice.* signed-in/);
      const second = await open("/vue");
      await shows(second, /Alice.* signed-in/);
      await Promise.all([first, second].map((page) => page.getByText("Sign out").click()));
      for (const page of [first, second]) await page.waitForURL((url) => url.origin !== new URL(broker.baseURL).origin || url.pathname === "/");
      const third = await open("/vue");
      await shows(third, /nobody signed-out/);
    }));

  test("a network that is down and up again changes the state only", () =>
    visit(async (context, open) => {
      await context.addInitScript(() => {
        const tab = new BroadcastChannel("cloakroom /bff");
        window.streamed = new Promise((done) => tab.addEventListener("message", ({ data }) => data?.event === "changed" && done()));
      });
      const page = await open("/");
      await chooseAlice(page);
      await shows(page, /Alice.* signed-in/);
      await page.evaluate(() => window.streamed); // the first event, which would show later that the broker is reachable
      await context.setOffline(true);
      await page.evaluate(() => window.client.session(true).catch(() => {}));
      await shows(page, /Alice.* unreachable/);
      await context.setOffline(false); // fires the event online
      await shows(page, /Alice.* signed-in/);
    }));

  test("other scripts of the origin and foreign responses break nothing", () =>
    visit(async (context, open) => {
      const page = await context.newPage();
      const errors = [];
      page.on("pageerror", (err) => errors.push(String(err)));
      await page.goto("/");
      await chooseAlice(page);
      await shows(page, /Alice.* signed-in/);
      const other = await open("/vue");
      await shows(other, /Alice.* signed-in/);
      let requests = 0;
      page.on("request", (request) => (requests += request.url().endsWith("/bff/session") ? 1 : 0));
      await other.evaluate(() => {
        const tab = new BroadcastChannel("cloakroom /bff");
        const cyclic = {};
        cyclic.self = cyclic;
        for (const event of ["changed", "expiring", "ended", "unknown", cyclic]) {
          for (const data of [undefined, null, 7n, "x".repeat(1 << 20), {}, cyclic, new Map(), { authenticated: true }, { seconds_left: "?" }]) tab.postMessage({ event, data });
        }
        for (let i = 0; i < 1000; i++) tab.postMessage(`session ${i}`);
      });
      await until(() => requests > 0);
      await page.evaluate(() => window.client.session(true)); // the messages have been handled before
      await shows(page, /Alice.* signed-in/);
      assert.ok(requests < 200, `got ${requests} requests for 1045 messages, want few`);

      // What a captive portal, another server or a cache sends.
      for (const response of [{ body: "<!doctype html>", contentType: "text/html" }, { json: { ok: true } }, { status: 302, headers: { Location: "/vue" } }, { status: 302, headers: { Location: "http://portal.invalid/" } }]) {
        await page.route("**/bff/session", (route) => route.fulfill(response));
        await page.evaluate(() => window.client.session(true).catch(() => {}));
        await shows(page, /Alice.* unreachable/);
        await page.unroute("**/bff/session");
        await shows(page, /Alice.* signed-in/); // by itself
      }
      assert.deepEqual(errors, []);
    }));

  test("the user's devices", () =>
    visit(async (context, open) => {
      const page = await open("/");
      await chooseAlice(page);
      await shows(page, /Alice.* signed-in/);
      await page.getByText("Devices").click();
      await page.locator("#devices", { hasText: /Chrom.* \(this one\)/ }).waitFor();
      await page.evaluate(() => window.client.endOtherSessions());
      await page.evaluate(() => window.client.endSession(window.client.current.session.id));
      await page.getByRole("alert").waitFor();
    }));

  test("cloakroom dev with Vite: signIn, a session that expires", async () => {
    const [port, vitePort] = [await freePort(2), await freePort()];
    const config = join(dist, "dev.yaml");
    writeFileSync(config, "session: {idle_timeout: 20s}\n");
    const command = [process.execPath, vite, app, "--host", "127.0.0.1", "--port", `${vitePort}`, "--strictPort"];
    const dev = await start(await cloakroom(), ["dev", "--config", config, "--port", `${port}`, "--app", `http://127.0.0.1:${vitePort}`, "--", ...command], {
      ready: /ready in/,
    });
    try {
      await visit(async (context, open) => {
        const page = await open("/?open");
        await shows(page, /nobody signed-out/);
        await signInAs(page, { sub: "carol", name: "Carol" }, { returnTo: "/?open" });
        await shows(page, /Carol (signed-in|expiring)/);
        await signInAs(page, "bob", { returnTo: "/?open" });
        await shows(page, /Bob.* (signed-in|expiring)/);
        await assert.rejects(signInAs(page, "nobody"), /sign in: status 400/);

        await signInAs(page, "bob", { returnTo: "/" });
        await page.getByLabel("Letter").fill("a long letter");
        await shows(page, /Bob.* expiring idle/);
        await page.getByText("signed out: idle").waitFor();
        assert.equal(await page.getByLabel("Letter").inputValue(), "a long letter");
      }, `http://localhost:${port}`);
    } finally {
      await dev.stop();
    }
  });
});

/** Waits for a condition. @param {() => boolean} condition */
async function until(condition) {
  const deadline = Date.now() + 30_000;
  while (!condition()) {
    assert.ok(Date.now() < deadline, `not within 30 s: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
