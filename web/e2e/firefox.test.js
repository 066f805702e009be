// Firefox, over WebDriver BiDi: the core journey of the sample app, and what depends on the browser.
import assert from "node:assert/strict";
import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import puppeteer from "puppeteer-core";

import { startAPI } from "./exampleapi.js";
import { failures, repository } from "./process.js";
import { serve } from "./serve.js";

/** @typedef {import("puppeteer-core").Page} Page */

/** @type {import("puppeteer-core").Browser} */
let browser;
before(async () => {
  browser = await puppeteer.launch({ browser: "firefox", executablePath: process.env.FIREFOX ?? "/usr/bin/firefox-esr", headless: true, protocolTimeout: 60_000 });
});
after(() => browser?.close());

/** What Firefox reports as an error of a page: a connection that ends, and the icon of a page whose policy allows none. */
const harmless = /can’t establish a connection|connection to .* was interrupted|favicon\.ico because it violates/;

/**
 * Registers a test with a browser profile of its own. It also fails if a page has an error.
 *
 * @param {string} title
 * @param {(newTab: () => Promise<Page>, context: import("puppeteer-core").BrowserContext) => Promise<void>} steps
 * @param {RegExp} [expected] errors that are none
 */
function journey(title, steps, expected = harmless) {
  test(title, async () => {
    const context = await browser.createBrowserContext();
    /** @type {string[]} */
    const errors = [];
    const newTab = async () => {
      const page = await context.newPage();
      page.setDefaultTimeout(30_000); // for busy machines
      page.on("pageerror", (error) => expected.test(String(error)) || errors.push(String(error)));
      return page;
    };
    try {
      await steps(newTab, context);
      assert.deepEqual(errors, [], "errors on the page");
    } catch (err) {
      await mkdir(failures, { recursive: true });
      for (const [i, page] of (await context.pages()).entries()) {
        const path = join(failures, `firefox-${title.replaceAll(/[^a-z]+/gi, "-")}-${i}.png`);
        await page.screenshot({ path }).catch(() => {});
      }
      throw err;
    } finally {
      await context.close();
    }
  });
}

describe("Firefox with the sample app", { timeout: 300_000 }, () => {
  /** @type {Awaited<ReturnType<typeof serve>>} */
  let deployment;
  before(async () => {
    deployment = await serve();
  });
  after(() => deployment?.stop());

  journey("sign in, deep link, API call, sign out", async (newTab, context) => {
    const page = await newTab();
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
  });
});

// Not at once: Firefox runs only the tab in front at full speed.
describe("Firefox with an example", { timeout: 300_000 }, () => {
  /** @type {Awaited<ReturnType<typeof serve>>} */
  let deployment;
  /** @type {Awaited<ReturnType<typeof startAPI>>} */
  let api;
  before(async () => {
    api = await startAPI();
    const configuration = (await readFile(join(repository, "web/examples/cloakroom.yaml"), "utf8")).replaceAll("http://localhost:3000", api.url);
    const dir = join(repository, "web/examples/plain");
    deployment = await serve({ configuration, frontend: { dir }, session: { idle_timeout: "30s" } });
  });
  after(async () => {
    await deployment?.stop();
    await api?.stop();
  });

  /** Opens the app, which leads to the sign-in, and signs in. @param {Page} page */
  async function signIn(page) {
    await page.goto(deployment.baseURL);
    await pickAlice(page);
    await hasText(page, "#orders", "7: Coat");
  }

  journey("the user is warned before the session ends, and prevents it", async (newTab) => {
    const page = await newTab();
    await signIn(page);
    await hasText(page, "#notice", "You will be signed out in");
    await page.locator("#notice button").click();
    await hasText(page, "#notice", "");
  });

  journey("a sign-in in a window keeps the form, in all tabs", async (newTab) => {
    const [page, other] = [await newTab(), await newTab()];
    await signIn(page);
    await page.locator('input[name="text"]').fill("not sent yet");
    await other.goto(deployment.baseURL);
    await other.locator("#sign-out").click();
    await hasText(page, "#notice", "You were signed out.");
    await page.bringToFront();
    const opened = new Promise((resolve) => page.once("popup", resolve));
    await page.locator("#notice button").click();
    const popup = await opened;
    await pickAlice(popup);
    await hasText(page, "#notice", "");
    if (!popup.isClosed()) await new Promise((resolve) => popup.once("close", resolve)); // the client closes it
    assert.equal(await page.$eval('input[name="text"]', (input) => input.value), "not sent yet");
    await page.locator("#chat button").click(); // the WebSocket is that of the new session
    await hasText(page, "#reply", "You said: not sent yet");
  });

  journey("two tabs sign out at once", async (newTab) => {
    const tabs = [await newTab(), await newTab()];
    await signIn(tabs[0]);
    await tabs[1].goto(deployment.baseURL);
    await hasText(tabs[1], "#orders", "7: Coat");
    await Promise.all(tabs.map((tab) => tab.$eval("#sign-out", (button) => button.click())));
    for (const tab of tabs) {
      await tab.bringToFront();
      // The second request may come when the session has just ended. Then the provider is not told who signs out, and asks.
      await tab.waitForFunction(() => /You (are|were) signed out|Sign out\?/.test(document.body.textContent));
    }
    await tabs[0].goto(deployment.baseURL); // the guard leads to the sign-in
    await tabs[0].waitForSelector('button[name="user"][value="alice"]');
  });

  journey("the event stream says what happens to the session, and ends", async (newTab) => {
    const [page, other] = [await newTab(), await newTab()];
    await signIn(page);
    const ended = page.evaluate(async () => {
      const stream = new EventSource("/bff/session/events");
      const next = (type) => new Promise((resolve) => stream.addEventListener(type, ({ data }) => resolve(JSON.parse(data)), { once: true }));
      const first = next("session-changed");
      const last = next("session-ended");
      document.title = (await first).user.sub;
      const { reason } = await last;
      while (stream.readyState !== EventSource.CLOSED) await new Promise((resolve) => stream.addEventListener("error", resolve, { once: true }));
      return reason;
    });
    await page.waitForFunction(() => document.title === "alice");
    await other.goto(deployment.baseURL);
    await other.locator("#sign-out").click();
    assert.equal(await ended, "logout");
  });

  journey("offline the page says so, and recovers", async (newTab) => {
    const page = await newTab();
    await signIn(page);
    await page.setOfflineMode(true);
    await page.waitForFunction(
      () => {
        dispatchEvent(new Event("focus")); // the client checks then, at most once in 5 s
        return document.querySelector("#notice").textContent.includes("The app cannot be reached.");
      },
      { polling: 1000 },
    );
    await page.setOfflineMode(false);
    await page.waitForFunction(() => !document.querySelector("#notice").textContent.includes("The app cannot be reached."));
    assert.equal(await page.evaluate(apiStatus), 200);
  });

  journey("the policy of the app's pages blocks what it must", async (newTab) => {
    const page = await newTab();
    await signIn(page);
    /** Does something, and returns the directive that it violates. @param {(doIt: string) => void} act @param {string} value */
    const violated = (act, value) =>
      page.evaluate(
        async (act, value) => {
          const violation = new Promise((resolve) => document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective), { once: true }));
          const element = document.createElement(act);
          if (act === "script") element.textContent = value;
          else element.src = value;
          document.body.append(element);
          return violation;
        },
        act,
        value,
      );
    assert.equal(await violated("script", "globalThis.ran = true"), "script-src-elem");
    assert.equal(await page.evaluate(() => globalThis.ran), undefined);
    assert.equal(await violated("img", "https://elsewhere.example/x.png"), "img-src");
    assert.equal(await violated("iframe", "https://elsewhere.example/"), "frame-src");
    const blob = await page.evaluate(async () => {
      const image = new Image();
      image.src = URL.createObjectURL(new Blob(['<svg xmlns="http://www.w3.org/2000/svg" width="3" height="3"/>'], { type: "image/svg+xml" }));
      await image.decode();
      return image.naturalWidth;
    });
    assert.equal(blob, 3); // images of the page itself are allowed
  }, /Content-Security-Policy/);
});

/** Picks alice at the provider. @param {Page} page */
const pickAlice = (page) => page.locator('button[name="user"][value="alice"]').click();

/** In a page: calls the API, and returns the status. */
const apiStatus = () => fetch("/api/orders", { headers: { "X-CSRF": "1" } }).then((response) => response.status);

/** Waits until an element has a text; an empty one means none at all. @param {Page} page @param {string} selector @param {string} text */
const hasText = (page, selector, text) =>
  page.waitForFunction(
    (selector, text) => {
      const found = document.querySelector(selector)?.textContent;
      return text ? found?.includes(text) : found === "";
    },
    {},
    selector,
    text,
  );

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
