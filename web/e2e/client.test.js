// The browser client in Chromium where unit tests have no browser: pages that are restored, workers.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { closeBrowser, launch, streamOpens } from "./browser.js";
import { signIn } from "./journeys.js";
import { serve } from "./serve.js";

describe("the browser client", { timeout: 120_000 }, () => {
  /** @type {import("playwright-core").Browser} */
  let browser;
  /** @type {Awaited<ReturnType<typeof serve>>} */
  let broker;
  before(async () => {
    browser = await launch({ restoresPages: true });
    broker = await serve();
  });
  after(async () => {
    await closeBrowser(browser, "browser client");
    await broker?.stop();
  });

  /** Runs steps with a page whose user is signed in. @param {(page: import("playwright-core").Page) => Promise<void>} steps */
  async function signedIn(steps) {
    const context = await browser.newContext({ baseURL: broker.baseURL });
    context.setDefaultTimeout(30_000);
    const page = await context.newPage();
    await page.goto("/");
    await Promise.all([streamOpens(page), signIn(page)]);
    await steps(page);
    await context.close(); // not after a failure: closeBrowser saves its pages
  }

  for (const offline of [false, true]) {
    test(`going back after a logout shows nothing of the user${offline ? ", also without a network" : ""}`, () =>
      signedIn(async (page) => {
        await page.evaluate(async () => {
          const { createClient } = await import("/bff/client.js");
          createClient().logout({ returnTo: "/bff/signed-out" }); // a page without the client
        });
        await page.waitForURL("**/bff/signed-out");
        await page.context().setOffline(offline);
        await page.evaluate(() => history.back());
        // A locator, since waitForURL throws if the navigation fails while it waits.
        await page.locator(offline ? "#main-frame-error" : "#sign-in").waitFor();
        assert.equal(await page.getByText("Alice").count(), 0);
      }));
  }

  test("a worker calls APIs and gets the session, and follows nothing", () =>
    signedIn(async (page) => {
      const result = await page.evaluate(() => {
        const code = `
          import { createClient } from "${location.origin}/bff/client.js";
          const client = createClient();
          const [{ user }, response] = [await client.session(), await client.fetch("/api/me")];
          postMessage({ name: user.name, status: response.status, state: client.state.status });`;
        const worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })), { type: "module" });
        return new Promise((done) => {
          worker.onmessage = ({ data }) => done(data);
          worker.onerror = ({ message }) => done(message);
        });
      });
      assert.deepEqual(result, { name: "Alice Liddell", status: 200, state: "loading" });
    }));
});
