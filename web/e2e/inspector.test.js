// The inspector of cloakroom dev, and the page to pick a user.
import assert from "node:assert/strict";
import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { closeBrowser, launch, saveScreenshot } from "./browser.js";
import { cloakroom, freePort, start } from "./process.js";

const users = `users:
  - {sub: alice, name: Alice Liddell, email: alice@example.com, roles: [admin, editor]}
  - {sub: bob, acr: silver}
`;

describe("inspector", { timeout: 300_000 }, () => {
  /** @type {import("playwright-core").Browser} */
  let browser;
  /** @type {string} */
  let axe;
  let app, dev;

  before(async () => {
    axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
    const page = `<!doctype html><html lang="en"><title>App</title><h1>App</h1><img alt="" src="http://127.0.0.1:1/picture.png">`;
    app = createServer((request, response) => {
      if (request.url.startsWith("/api/")) return response.end("{}");
      response.setHeader("Content-Type", "text/html").end(page);
    }).listen(0, "127.0.0.1");
    await once(app, "listening");
    const url = `http://localhost:${app.address().port}`;
    const file = join(await mkdtemp(join(tmpdir(), "dev-")), "users.yaml");
    await writeFile(file, users);
    const args = ["dev", "--port", `${await freePort(2)}`, "--app", url, "--api", `/api=${url}`, "--users", file];
    dev = await start(await cloakroom(), args, { ready: /Open (http:\/\/localhost:\d+)[/ ]/ });
    browser = await launch();
  });
  after(async () => {
    await closeBrowser(browser, "inspector");
    await dev?.stop();
    app?.close();
  });

  /** Opens a browser profile of its own. @param {import("playwright-core").BrowserContextOptions} [options] */
  async function open(options = {}) {
    const context = await browser.newContext({ baseURL: dev.match[1], viewport: { width: 1280, height: 900 }, ...options });
    context.setDefaultTimeout(30_000); // for busy machines
    return { context, page: await context.newPage() };
  }

  const call = (page) => page.evaluate(async () => (await fetch("/api/orders", { headers: { "X-CSRF": "1" } })).status);

  test("shows the session and what was refused, and acts on it", async () => {
    const { context, page } = await open();
    await page.goto("/bff/login");
    await page.locator('button[name="user"][value="alice"]').click();
    await page.getByRole("heading", { name: "App" }).waitFor();
    assert.equal(await call(page), 200);
    assert.equal(await page.evaluate(async () => (await fetch("/api/orders", { method: "POST" })).status), 403);

    const inspector = await context.newPage();
    await inspector.goto("/bff/dev");
    await inspector.getByText("Signed in as alice").waitFor();
    await inspector.locator("section", { hasText: "Refused as cross-site" }).getByText("POST /api/orders").waitFor();
    const policy = inspector.locator("section", { hasText: "Content-Security-Policy" });
    await policy.getByText("img-src", { exact: true }).waitFor(); // the browser reports a little later
    await policy.getByText("would be blocked by cloakroom serve").waitFor();

    await inspector.getByRole("button", { name: "Expire the access token" }).click();
    await inspector.getByText("counts as expired").waitFor();
    assert.equal(await call(page), 200);
    await inspector.bringToFront();
    await inspector.locator("section", { hasText: "Refreshes" }).getByText("new tokens").waitFor(); // without a reload

    await inspector.getByRole("button", { name: "Switch the store off" }).click();
    await inspector.getByText("The store is off.").first().waitFor();
    assert.equal(await call(page), 503);
    await inspector.getByRole("button", { name: "Switch the store on" }).click();
    await inspector.getByText("Signed in as alice").waitFor();
    await inspector.getByRole("button", { name: "Switch the provider off" }).click();
    await inspector.getByText("The provider is off.").waitFor();
    await inspector.getByRole("button", { name: "Switch the provider on" }).click();
    await inspector.getByRole("button", { name: "Switch the provider off" }).waitFor();

    await inspector.getByRole("button", { name: "End the session" }).click();
    await inspector.getByText("This browser has no session.").waitFor();
    assert.equal(await call(page), 401);

    await inspector.getByRole("button", { name: "bob" }).click();
    await inspector.getByRole("heading", { name: "App" }).waitFor();
    await inspector.goto("/bff/dev");
    await inspector.getByText("Signed in as bob").waitFor();
    await context.close();
  });

  test("the picker remembers the last choice and takes claims", async () => {
    const { context, page } = await open();
    await page.goto("/bff/login");
    await page.locator('button[name="user"][value="bob"]').click();
    await page.getByRole("heading", { name: "App" }).waitFor();
    await page.goto("/bff/login?prompt=login");
    await page.locator("button:focus", { hasText: /bob.*last time/s }).waitFor(); // after the page is loaded
    await page.getByText("Sign in with other claims").click();
    await page.getByLabel("Claims of the user, as JSON").fill(`{"sub": "dave", "level": 3}`);
    await page.getByRole("button", { name: "Sign in", exact: true }).click();
    await page.getByRole("heading", { name: "App" }).waitFor();
    await page.goto("/bff/dev");
    await page.getByText("Signed in as dave").waitFor();
    await context.close();
  });

  const headings = {
    en: { picker: "Sign in", message: "That did not work", inspector: "Inspector" },
    de: { picker: "Anmelden", message: "Das hat nicht geklappt", inspector: "Inspektor" },
  };
  for (const [locale, language] of /** @type {const} */ ([["en-GB", "en"], ["de-AT", "de"]])) {
    test(`accessible and within the screen, light and dark, wide and narrow: ${language}`, async () => {
      const { context, page } = await open({ locale });
      const foreign = [];
      page.on("request", (request) => {
        const { hostname } = new URL(request.url());
        if (!["localhost", "127.0.0.1"].includes(hostname)) foreign.push(request.url());
      });
      const check = async (name) => {
        assert.equal(await page.locator("html").getAttribute("lang"), language, name);
        assert.equal(await page.locator("h1").textContent(), headings[language][name.split("-")[0]]);
        await page.evaluate(axe); // the CSP of the page does not allow it as a script element
        for (const colorScheme of /** @type {const} */ (["light", "dark"])) {
          await page.emulateMedia({ colorScheme });
          for (const width of [1280, 360]) {
            await page.setViewportSize({ width, height: 800 });
            const shot = `${name}-${language}-${colorScheme}-${width}`;
            await saveScreenshot(page, shot, { fullPage: true });
            assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${shot} is too wide`);
            const { violations } = await page.evaluate("axe.run()");
            assert.deepEqual(violations.map((v) => [v.id, v.nodes.map((n) => n.html)]), [], shot);
          }
        }
      };
      await page.goto("/bff/dev");
      await check("inspector-empty");
      await page.goto("/bff/login");
      const picker = page.url();
      await page.locator("summary").click();
      await check("picker");
      await page.goto(new URL("/authorize?client_id=unknown", picker).href);
      await check("message");
      await page.goto(picker);
      await page.locator('button[name="user"][value="alice"]').click();
      await page.getByRole("heading", { name: "App" }).waitFor();
      await call(page);
      await page.evaluate(() => fetch("/api/orders", { method: "POST" }));
      await page.goto("/bff/dev");
      await page.locator('form[action$="/expire"] button').click();
      await page.locator('[role="status"]').waitFor();
      for (const summary of await page.locator("summary").all()) await summary.click();
      await page.locator("summary").first().click();
      await check("inspector");
      assert.deepEqual(foreign, [], "requests to other hosts");
      await context.close();
    });
  }
});
