// The page for administrators in a browser.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before, describe, test } from "node:test";

import { closeBrowser, launch, saveScreenshot } from "./browser.js";
import { signIn } from "./journeys.js";
import { serve } from "./serve.js";

const token = "a token of administrators";

describe("page for administrators", { timeout: 600_000 }, () => {
  /** @type {Awaited<ReturnType<typeof serve>>} */
  let deployment;
  /** @type {import("playwright-core").Browser} */
  let browser;
  /** @type {string} */
  let axe;

  before(async () => {
    axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
    deployment = await serve({ adminToken: token });
    browser = await launch();
  });
  after(async () => {
    await closeBrowser(browser, "admin");
    await deployment?.stop();
  });

  /**
   * Opens the page in a browser profile of its own, and signs in.
   *
   * @param {import("playwright-core").BrowserContextOptions} [options]
   */
  async function administrate(options = {}) {
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
    context.setDefaultTimeout(30_000); // for busy machines
    const page = await context.newPage();
    const errors = [];
    page.on("pageerror", (error) => errors.push(String(error)));
    page.on("console", (message) => {
      if (message.type() === "error" && !message.text().includes("status of 401")) errors.push(message.text());
    });
    await page.goto(deployment.adminURL);
    await page.getByLabel("Admin token").fill(token);
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByRole("heading", { name: "Sessions" }).waitFor();
    return {
      page,
      async close() {
        assert.deepEqual(errors, [], "errors on the page");
        await context.close();
      },
    };
  }

  /** Opens the app in a browser profile of its own, and signs alice in. */
  async function signedInApp() {
    const context = await browser.newContext({ baseURL: deployment.baseURL });
    const page = await context.newPage();
    await page.goto("/");
    await signIn(page);
    const session = () =>
      page.evaluate(async () => (await fetch("/bff/session", { headers: { "X-CSRF": "1" } })).json());
    return { session, id: (await session()).session.id, close: () => context.close() };
  }

  /** @param {import("playwright-core").Page} page @param {string} text */
  async function search(page, text, by = "sub") {
    await page.getByLabel("Find by").selectOption(by);
    await page.getByLabel("Value").fill(text);
    await page.getByRole("button", { name: "Search" }).click();
  }

  test("a wrong token is refused, sign-out ends the access", async () => {
    const context = await browser.newContext();
    const page = await context.newPage();
    await page.goto(deployment.adminURL);
    await page.getByLabel("Admin token").fill("wrong");
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByText("This is not the admin token.").waitFor();
    assert.equal((await context.cookies()).length, 0, "cookies after a wrong token");
    await page.getByLabel("Admin token").fill(token);
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByRole("heading", { name: "Last hour" }).waitFor();
    const [cookie] = await context.cookies();
    assert.equal(cookie.httpOnly, true);
    assert.equal(cookie.sameSite, "Strict");
    assert.equal(cookie.path, "/admin/");
    assert.ok(!cookie.value.includes(token), "the cookie has the token");
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("Admin token").waitFor();
    await page.goto(deployment.adminURL);
    await page.getByLabel("Admin token").waitFor();
    await context.close();
  });

  test("sessions are found and revoked, one and all", async () => {
    const [first, second, third] = [await signedInApp(), await signedInApp(), await signedInApp()];
    const { page, close } = await administrate();
    await search(page, "alice");
    const row = (id) => page.locator("table.sessions tbody tr").filter({ hasText: id });
    for (const { id } of [first, second, third]) await row(id).waitFor();

    await row(first.id).getByRole("button").click();
    const dialog = page.getByRole("dialog");
    await dialog.getByRole("button", { name: "Cancel" }).click();
    assert.equal((await first.session()).authenticated, true, "after Cancel");
    await row(first.id).getByRole("button").click();
    await dialog.getByRole("button", { name: "Revoke" }).click();
    await page.getByText("1 session revoked.").waitFor();
    assert.equal((await first.session()).authenticated, false, "the revoked session");
    assert.equal((await second.session()).authenticated, true, "another session");
    assert.equal(await row(first.id).count(), 0, "rows of the revoked session");

    await page.getByRole("button", { name: "Revoke all" }).click();
    await dialog.getByRole("button", { name: "Revoke" }).click();
    await page.getByText("2 sessions revoked.").waitFor();
    assert.equal((await second.session()).authenticated, false, "the second session");
    assert.equal((await third.session()).authenticated, false, "the third session");

    const history = page.getByRole("group", { name: "What happened" });
    for (const event of ["session.started", "session.ended", "admin.session_revoked"]) {
      // Events are written after the response to the revocation.
      for (const deadline = Date.now() + 30_000; ; ) {
        await search(page, first.id, "id");
        await page.waitForLoadState();
        await history.waitFor();
        if ((await history.getByText(event).count()) > 0) break;
        assert.ok(Date.now() < deadline, `no ${event} in the history`);
      }
    }
    await close();
    for (const app of [first, second, third]) await app.close();
  });

  test("sessions are revoked without the script", async () => {
    const app = await signedInApp();
    const { page, close } = await administrate({ javaScriptEnabled: false });
    await search(page, app.id, "id");
    await page.getByRole("button", { name: `Revoke session ${app.id}` }).click();
    await page.getByText("1 session revoked.").waitFor();
    assert.equal((await app.session()).authenticated, false);
    await close();
    await app.close();
  });

  test("hostile search strings are text", async () => {
    const { page, close } = await administrate();
    page.on("dialog", (dialog) => assert.fail(`a dialog: ${dialog.message()}`));
    for (const text of [
      `<img src=x onerror=alert(1)>`,
      `"><script>alert(1)</script>`,
      `' onfocus=alert(1) autofocus='`,
      `javascript:alert(1)`,
      `{{.Origin}}`,
      `../../x?y#z`,
      "\u202ealice",
      "x".repeat(2000),
    ]) {
      for (const by of ["sub", "sid", "id", "request"]) {
        await search(page, text, by);
        await page.getByRole("heading", { name: "Last hour" }).waitFor();
        assert.equal(await page.getByLabel("Value").inputValue(), text);
        assert.equal(await page.locator("img[src=x], main script").count(), 0, text);
      }
    }
    await close();
  });

  test("the page is updated without a reload", async () => {
    const { page, close } = await administrate();
    await page.evaluate(() => (window.sameDocument = true));
    const app = await signedInApp();
    const event = page.getByRole("region", { name: "Security events" }).locator("tr").filter({ hasText: app.id });
    await page.evaluate(() => document.dispatchEvent(new Event("visibilitychange")));
    await event.getByText("session.started").waitFor();
    assert.equal(await page.evaluate(() => window.sameDocument), true);
    await close();
    await app.close();
  });

  test("accessible and within the screen, light and dark, wide and narrow", async () => {
    const app = await signedInApp();
    const { page, close } = await administrate();
    const check = async (state) => {
      await page.evaluate(axe); // the CSP of the page does not allow it as a script element
      for (const colorScheme of /** @type {const} */ (["light", "dark"])) {
        await page.emulateMedia({ colorScheme });
        for (const width of [1280, 320]) {
          await page.setViewportSize({ width, height: 900 });
          const shot = `admin-${state}-${colorScheme}-${width}`;
          await saveScreenshot(page, shot, { fullPage: true });
          assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${shot} is too wide`);
          const { violations } = await page.evaluate("axe.run()");
          assert.deepEqual(violations.map((v) => [v.id, v.nodes.map((n) => n.html)]), [], shot);
        }
      }
    };
    await page.locator("summary").click();
    await check("page");
    await search(page, "alice");
    await page.locator("table.sessions").waitFor();
    await check("search");
    await page.getByRole("button", { name: `Revoke session ${app.id}` }).click();
    await check("dialog");
    await page.getByRole("button", { name: "Cancel" }).click();
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("Admin token").waitFor();
    await check("sign-in");
    await close();
    await app.close();
  });
});
