// Exports of many pages by Next.js and Astro, see web/examples, as a browser loads them.
import assert from "node:assert/strict";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { closeBrowser, launch } from "./browser.js";
import { host } from "./host.js";
import { repository } from "./process.js";

const immutable = "public, max-age=31536000, immutable";

/**
 * Runs tests with an example that is hosted, and fails if a page logs an error.
 *
 * @param {string} name
 * @param {string} dir its output, in web/examples
 * @param {(open: () => Promise<import("playwright-core").Page>, dir: string) => void} tests
 */
function hosted(name, dir, tests) {
  describe(name, { timeout: 180_000 }, () => {
    /** @type {import("playwright-core").Browser | undefined} */
    let browser;
    let server;
    /** @type {string[]} */
    const errors = [];
    const path = join(repository, "web/examples", dir);

    before(async () => {
      server = await host(path);
      browser = await launch();
    });
    after(async () => {
      await closeBrowser(browser, name);
      await server?.stop();
      // The browser logs the status of a page that is not found. That is expected.
      const unexpected = errors.filter((text) => !text.includes("the server responded with a status of 404"));
      assert.deepEqual(unexpected, [], "errors in the browser's console");
    });
    async function open() {
      const context = await browser.newContext({ baseURL: server.baseURL });
      const page = await context.newPage();
      page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
      page.on("pageerror", (err) => errors.push(`${err}`));
      return page;
    }
    tests(open, path);
  });
}

/**
 * Waits until React handles the events of an element. Before, a click on a button is lost, and one on a link navigates.
 *
 * @param {import("playwright-core").Locator} locator
 */
const hydrated = async (locator) =>
  locator.page().waitForFunction((element) => Object.keys(element).some((key) => key.startsWith("__reactProps$")), await locator.elementHandle());

/** Returns the responses that a page loads from a navigation on. @param {import("playwright-core").Page} page @param {string} path */
async function load(page, path) {
  /** @type {import("playwright-core").Response[]} */
  const responses = [];
  page.on("response", (response) => responses.push(response));
  const response = await page.goto(path, { waitUntil: "networkidle" });
  return { response, responses };
}

hosted("an export of Next.js", "next-export/out", (open, dir) => {
  test("a deep link has its own page, which hydrates", async () => {
    const page = await open();
    const { response } = await load(page, "/about");
    assert.equal(response.status(), 200);
    assert.equal(await page.locator("h1").textContent(), "About");
    const button = page.getByRole("button");
    await hydrated(button);
    await button.click();
    await page.getByText("Clicked 1").waitFor();
    await page.context().close();
  });

  test("a link loads the next page without a navigation", async () => {
    const page = await open();
    await load(page, "/");
    await page.evaluate(() => (globalThis.sameDocument = true));
    const link = page.getByRole("link", { name: "About" });
    await hydrated(link);
    await link.click();
    await page.getByRole("heading", { name: "About" }).waitFor();
    assert.equal(await page.evaluate(() => globalThis.sameDocument), true);
    assert.equal(new URL(page.url()).pathname, "/about");
    await page.context().close();
  });

  test("a path can have a dot, and a slash at the end", async () => {
    const page = await open();
    for (const path of ["/docs/v1.2", "/docs/v1.2/", "/docs/intro/"]) {
      const { response } = await load(page, path);
      assert.equal(response.status(), 200, path);
      assert.equal(await page.locator("h1").textContent(), path.split("/")[2]);
    }
    await page.context().close();
  });

  test("an unknown path gets the app's own page with status 404", async () => {
    const page = await open();
    const { response } = await load(page, "/docs/nothing");
    assert.equal(response.status(), 404);
    await page.getByText("This page could not be found.").waitFor();
    await page.context().close();
  });

  test("scripts are compressed and kept for a year", async () => {
    const page = await open();
    const { responses } = await load(page, "/");
    const scripts = responses.filter((response) => response.url().includes("/_next/static/chunks/"));
    assert.ok(scripts.length > 3, `got ${scripts.length} chunks`);
    let [transferred, size] = [0, 0];
    for (const response of scripts) {
      const headers = await response.allHeaders();
      const { pathname } = new URL(response.url());
      assert.equal(headers["cache-control"], immutable, pathname);
      assert.equal(headers["vary"], "Accept-Encoding", pathname);
      const file = (await stat(join(dir, pathname))).size;
      if (file >= 1024) assert.equal(headers["content-encoding"], "br", pathname);
      size += file;
      transferred += (await response.request().sizes()).responseBodySize;
    }
    assert.ok(transferred < size / 2.5, `got ${transferred} bytes for files of ${size}`);
    await page.context().close();
  });

  test("a page is revalidated", async () => {
    const page = await open();
    const { response } = await load(page, "/about");
    const etag = await response.headerValue("etag");
    assert.ok(etag);
    for (const [encoding, status] of [["br", 304], ["gzip", 200]]) {
      const again = await page.request.get("/about", { headers: { "If-None-Match": etag, "Accept-Encoding": `${encoding}` } });
      assert.equal(again.status(), status, `${encoding}`);
    }
    await page.context().close();
  });
});

hosted("a build of Astro", "astro/dist", (open) => {
  test("a page loads its scripts and chunks", async () => {
    const page = await open();
    const { responses } = await load(page, "/");
    await page.getByText("Hello").waitFor();
    const scripts = responses.filter((response) => response.url().includes("/_astro/"));
    assert.equal(scripts.length, 2);
    for (const response of scripts) assert.equal(await response.headerValue("cache-control"), immutable, response.url());
    await page.getByRole("link", { name: "About" }).click();
    await page.getByRole("heading", { name: "About" }).waitFor();
    assert.equal(new URL(page.url()).pathname, "/about");
    await page.context().close();
  });

  test("a page with relative URLs is at the URL where they work", async () => {
    const page = await open();
    for (const path of ["/guide", "/guide/"]) {
      const { response } = await load(page, `${path}?q=1`);
      assert.equal(response.status(), 200);
      assert.equal(new URL(page.url()).pathname, "/guide/");
      assert.equal(new URL(page.url()).search, "?q=1");
      assert.equal(await page.locator("img").evaluate((/** @type {HTMLImageElement} */ image) => image.naturalWidth), 20);
    }
    await page.context().close();
  });

  test("an unknown path gets the app's own page with status 404", async () => {
    const page = await open();
    for (const path of ["/nothing", "/docs/nothing", "/docs/", "/missing.js"]) {
      const { response } = await load(page, path);
      assert.equal(response.status(), 404, path);
      assert.equal(await page.locator("h1").textContent(), "Lost");
    }
    await page.context().close();
  });

  test("a service worker controls the app and is revalidated", async () => {
    const page = await open();
    await load(page, "/");
    const worker = await page.request.get("/sw.js");
    assert.equal(worker.headers()["content-type"], "text/javascript; charset=utf-8");
    assert.equal(worker.headers()["cache-control"], "no-cache");
    const manifest = await page.request.get("/manifest.webmanifest");
    assert.equal(manifest.headers()["content-type"], "application/manifest+json");
    assert.equal(manifest.headers()["cache-control"], "no-cache");
    await page.evaluate(async () => {
      const controlled = new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve));
      await navigator.serviceWorker.register("/sw.js");
      await controlled;
    });
    assert.equal(await page.evaluate(async () => (await fetch("/from-worker")).text()), "worker");
    const { response } = await load(page, "/about");
    assert.equal(response.status(), 200);
    await page.context().close();
  });
});
