// The core journey in Firefox, over WebDriver BiDi.
import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { after, before, describe, test } from "node:test";

import puppeteer from "puppeteer-core";

import { failures } from "./process.js";
import { serve } from "./serve.js";

describe("Firefox", { timeout: 300_000 }, () => {
  /** @type {Awaited<ReturnType<typeof serve>>} */
  let deployment;
  /** @type {import("puppeteer-core").Browser} */
  let browser;

  before(async () => {
    deployment = await serve();
    browser = await puppeteer.launch({ browser: "firefox", executablePath: process.env.FIREFOX ?? "/usr/bin/firefox-esr", headless: true });
  });
  after(async () => {
    await browser?.close();
    await deployment?.stop();
  });

  test("sign in, deep link, API call, sign out", async () => {
    const context = await browser.createBrowserContext();
    const page = await context.newPage();
    page.setDefaultTimeout(30_000); // for busy machines
    /** @type {string[]} */
    const errors = [];
    page.on("pageerror", (error) => errors.push(String(error)));
    try {
      await page.goto(`${deployment.baseURL}/coats/17?shelf=2#hook`);
      await page.locator("#sign-in").click();
      await page.locator('button[name="user"][value="alice"]').click();
      assert.match((await text(page, "#user-name")) ?? "", /alice/i);
      assert.equal(page.url(), `${deployment.baseURL}/coats/17?shelf=2#hook`);

      const [cookie, ...others] = (await context.cookies()).filter((c) => c.name.includes("cloakroom"));
      assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.path, others.length], [true, "Strict", "/", 0]);

      await page.locator("#call-me").click();
      await page.waitForSelector('#result[data-path="/api/me"][data-status="200"]');
      await page.locator("#call-admin").click();
      await page.waitForSelector('#result[data-path="/api/admin"][data-status="403"]');
      await page.locator("#look").click();
      await page.waitForSelector('#look-result[data-verdict="clean"]');

      await page.reload();
      await text(page, "#user-name");
      await page.locator("#sign-out").click();
      await page.waitForSelector("#sign-in", { visible: true });
      assert.equal(await page.evaluate(() => fetch("/api/me", { headers: { "X-CSRF": "1" } }).then((r) => r.status)), 401);
      assert.deepEqual(errors, [], "errors on the page");
    } catch (err) {
      await mkdir(failures, { recursive: true });
      await page.screenshot({ path: `${failures}/firefox.png` }).catch(() => {});
      throw err;
    } finally {
      await context.close();
    }
  });
});

/**
 * Returns the text of an element once it is visible.
 *
 * @param {import("puppeteer-core").Page} page
 * @param {string} selector
 */
async function text(page, selector) {
  const element = await page.waitForSelector(selector, { visible: true });
  return element?.evaluate((e) => e.textContent);
}
