// Chromium, and screenshots of its pages.
import { mkdir } from "node:fs/promises";
import { join } from "node:path";

import { chromium } from "playwright-core";

import { failures } from "./process.js";

/**
 * Starts a Chromium that sends no requests of its own to the Internet.
 *
 * @param {{ restoresPages?: boolean }} [options] restoresPages: with the back/forward cache, which Playwright turns off
 */
export const launch = ({ restoresPages = false } = {}) =>
  chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    ignoreDefaultArgs: restoresPages ? ["--disable-back-forward-cache"] : [],
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });

/**
 * Waits until a page has its event stream. Before, a page whose session is ended elsewhere gets 401 for the stream, which
 * browsers log as an error, and does not learn the reason. Call it before what opens the stream.
 *
 * @param {import("playwright-core").Page} page
 */
export const streamOpens = (page) => page.waitForResponse((response) => response.url().includes("/bff/session/events") && response.ok());

/**
 * Waits until hot reload of the next page is connected: its server sends a message then. A file that changes before may
 * cause no update. Call it before what loads the page.
 *
 * @param {import("playwright-core").Page} page
 * @returns {Promise<void>}
 */
export const hotReloadConnects = (page) =>
  new Promise((resolve) => page.once("websocket", (socket) => socket.once("framereceived", () => resolve())));

/**
 * Saves a screenshot for people, in the folder SCREENSHOTS. Without that it does nothing, because it takes a while.
 *
 * @param {import("playwright-core").Page} page
 * @param {string} name
 * @param {import("playwright-core").PageScreenshotOptions} [options]
 */
export async function saveScreenshot(page, name, options) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`), ...options });
}

/**
 * Saves a screenshot of each open page of a context. It never fails: the test has failed already.
 *
 * @param {import("playwright-core").BrowserContext} context
 * @param {string} title
 */
export async function savePages(context, title) {
  await mkdir(failures, { recursive: true });
  for (const [i, page] of context.pages().entries()) {
    const path = join(failures, `${title.replaceAll(/[^a-z0-9]+/gi, "-")}-${i + 1}.png`);
    await page.screenshot({ path, timeout: 5_000 }).catch((err) => console.error(`screenshot of ${page.url()}: ${err.message}`));
  }
}

/**
 * Closes a browser. Contexts that are still open belong to failed tests: it saves screenshots of their pages first.
 *
 * @param {import("playwright-core").Browser | undefined} browser
 * @param {string} title
 */
export async function closeBrowser(browser, title) {
  for (const [i, context] of (browser?.contexts() ?? []).entries()) await savePages(context, `${title} ${i + 1}`);
  await browser?.close();
}
