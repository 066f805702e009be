// The apps in web/examples in a browser, with what a user of them does.
import assert from "node:assert/strict";
import { access, readFile, writeFile, mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { closeBrowser, launch, savePages } from "./browser.js";
import { startAPI } from "./exampleapi.js";
import { shoot } from "./journeys.js";
import { repository } from "./process.js";
import { serve } from "./serve.js";

/** @typedef {import("playwright-core").Page} Page */

/**
 * The examples, by their output in web/examples. An app whose build has a page for each path has its own paths.
 *
 * @type {Record<string, { dir: string, start?: string, order?: (id: number) => string }>}
 */
const examples = {
  "plain HTML": { dir: "plain" },
  "React Router": { dir: "react-router/dist" },
  "TanStack Router": { dir: "tanstack-router/dist" },
  Vue: { dir: "vue/dist" },
  Angular: { dir: "angular/dist" },
  "Next.js export": { dir: "next-export/out", start: "/orders", order: (id) => `/orders?id=${id}` },
};

/** @type {import("playwright-core").Browser} */
let browser;
before(async () => {
  browser = await launch();
});
after(() => closeBrowser(browser, "examples"));

// They wait most of the time, so several run at once.
describe("the example", { concurrency: 3, timeout: 600_000 }, () => {
  for (const [name, { dir, start = "/", order = (id) => `/orders/${id}` }] of Object.entries(examples)) {
    describe(name, { concurrency: 1 }, () => journeys(name, { dir: join(repository, "web/examples", dir), start, order }));
  }
});

/**
 * Registers the journeys of an example. Each has a browser profile of its own.
 *
 * @param {string} name
 * @param {{ dir: string, start: string, order: (id: number) => string }} example
 */
function journeys(name, { dir, start, order }) {
  /** @type {Awaited<ReturnType<typeof startAPI>>} */
  let api;
  /** @type {Awaited<ReturnType<typeof serve>>} */
  let deployment;

  before(async () => {
    await access(join(dir, "index.html")).catch(() => assert.fail(`${dir} has no build: run make examples`));
    api = await startAPI();
    const configuration = (await readFile(join(repository, "web/examples/cloakroom.yaml"), "utf8")).replaceAll("http://localhost:3000", api.url);
    deployment = await serve({ configuration, frontend: { dir }, session: { idle_timeout: "40s" } });
  });
  after(async () => {
    await deployment?.stop();
    await api?.stop();
  });

  /**
   * Registers a test with a browser profile of its own.
   *
   * @param {string} title
   * @param {(page: Page, newTab: () => Promise<Page>) => Promise<void>} steps
   */
  function journey(title, steps) {
    test(title, async () => {
      const context = await browser.newContext({ baseURL: deployment.baseURL });
      context.setDefaultTimeout(30_000); // for busy machines
      /** @type {string[]} */
      const errors = [];
      const newTab = async () => {
        const page = await context.newPage();
        page.on("pageerror", (error) => errors.push(String(error)));
        page.on("console", (message) => message.text().includes("Content Security Policy") && errors.push(message.text()));
        return page;
      };
      try {
        await steps(await newTab(), newTab);
        assert.deepEqual(errors, [], "errors on the page");
      } catch (err) {
        await savePages(context, `${name} ${title}`);
        throw err;
      } finally {
        await context.close();
      }
    });
  }

  /** Opens a page, signs in as alice and waits for the orders. @param {Page} page @param {string} [path] */
  async function signIn(page, path = start) {
    await page.goto(path);
    await page.locator('button[name="user"][value="alice"]').click();
    await page.getByRole("link", { name: "7: Coat" }).waitFor();
  }

  journey("the guard leads to the sign-in, and back to a deep link", async (page) => {
    const path = `${order(7)}${order(7).includes("?") ? "&" : "?"}from=mail#top`;
    await signIn(page, path);
    await page.getByText("Order 7: Coat").waitFor();
    assert.equal(page.url(), `${deployment.baseURL}${path}`);
    await page.waitForFunction(() => document.querySelector("img").naturalWidth > 0);
    await page.getByRole("link", { name: "8: Hat" }).click();
    await page.getByText("Order 8: Hat").waitFor();
    assert.equal(page.url(), `${deployment.baseURL}${order(8)}`);
    await shoot(page, `example ${name}`);
  });

  journey("an event stream and a WebSocket work", async (page) => {
    await signIn(page);
    await page.waitForFunction(() => Number(document.querySelector("#ticks").textContent) > 2);
    await page.getByLabel("Message").fill("hello");
    await page.getByRole("button", { name: "Send" }).click();
    await page.getByText("You said: hello").waitFor();
  });

  journey("an upload reports its progress, a download has its name", async (page) => {
    await signIn(page);
    const photo = join(await mkdtemp(join(tmpdir(), "photo-")), "coat.jpg");
    await writeFile(photo, Buffer.alloc(3 << 20));
    await page.getByLabel("Photo of the coat").setInputFiles(photo);
    await page.getByText(`${3 << 20} bytes uploaded`).waitFor();
    assert.equal(await page.locator("progress").evaluate((bar) => bar.value), 1);

    const started = page.waitForEvent("download");
    await page.getByRole("link", { name: "Download the report" }).click();
    const download = await started;
    assert.equal(download.suggestedFilename(), "report.csv");
    assert.match(await readFile(await download.path(), "utf8"), /7,Coat/);
  });

  journey("a call that needs a stronger sign-in gets it", async (page) => {
    await signIn(page);
    await page.getByRole("button", { name: "Close the year" }).click();
    await page.locator('button[name="user"][value="alice"]').click();
    await page.getByRole("link", { name: "7: Coat" }).waitFor();
    await page.getByRole("button", { name: "Close the year" }).click();
    await page.getByText("The year is closed.").waitFor();
  });

  journey("the user is warned before the session ends, and prevents it", async (page) => {
    await signIn(page);
    await page.getByText(/You will be signed out in \d+ s/).waitFor();
    await shoot(page, `example ${name} expiring`);
    await page.getByRole("button", { name: "Stay signed in" }).click();
    await page.getByText(/You will be signed out/).waitFor({ state: "hidden" });
  });

  journey("other devices are listed and signed out", async (page) => {
    await signIn(page);
    const otherContext = await browser.newContext({ baseURL: deployment.baseURL });
    otherContext.setDefaultTimeout(30_000);
    const other = await otherContext.newPage();
    await signIn(other);
    await page.reload();
    await page.getByText(/Chrome on Linux, last seen/).first().waitFor();
    await page.getByRole("button", { name: "Sign out the others" }).click();
    await other.getByText("You were signed out.").waitFor();
    await page.getByText(/, last seen/).first().waitFor({ state: "detached" });
    await otherContext.close();
  });

  journey("the user signs in again in a window, and the page stays", async (page, newTab) => {
    await signIn(page);
    await page.getByLabel("Message").fill("not sent yet");
    const other = await newTab();
    await other.goto(start);
    await other.getByRole("button", { name: "Sign out", exact: true }).click();
    await page.getByText("You were signed out.").waitFor();
    const opened = page.context().waitForEvent("page");
    await page.getByRole("button", { name: "Sign in again" }).click();
    const popup = await opened;
    const loadedAgain = page.waitForResponse((response) => response.url().endsWith("/api/orders") && response.ok());
    await popup.locator('button[name="user"][value="alice"]').click();
    await loadedAgain;
    await page.getByText("You were signed out.").waitFor({ state: "hidden" });
    assert.equal(await page.getByLabel("Message").inputValue(), "not sent yet");
    await page.getByRole("button", { name: "Send" }).click(); // the WebSocket is that of the new session
    await page.getByText("You said: not sent yet").waitFor();
  });

  journey("offline, and while the store is down, the page says so and stays", async (page) => {
    const trouble = page.getByText("The app cannot be reached.");
    /** Waits for a check of the client: at most one in 5 s. */
    const seesTrouble = () =>
      page.waitForFunction(
        () => {
          dispatchEvent(new Event("focus"));
          return document.body.textContent.includes("The app cannot be reached.");
        },
        undefined,
        { polling: 1000 },
      );
    await signIn(page);
    await page.getByLabel("Message").fill("not sent yet");
    await page.context().setOffline(true);
    await seesTrouble();
    await page.context().setOffline(false);
    await trouble.waitFor({ state: "hidden" });

    // The session was idle until now, and would end while the store is down.
    assert.equal(await page.evaluate(async () => (await fetch("/api/orders", { headers: { "X-CSRF": "1" } })).status), 200);
    deployment.freezeStore(true);
    try {
      await seesTrouble();
      assert.equal(await page.getByLabel("Message").inputValue(), "not sent yet");
      await page.reload();
      await trouble.waitFor();
    } finally {
      deployment.freezeStore(false);
    }
    await page.getByRole("link", { name: "7: Coat" }).waitFor();
  });

  journey("signing out ends at the page that says so", async (page) => {
    await signIn(page);
    await page.getByRole("button", { name: "Sign out", exact: true }).click();
    await page.getByRole("heading", { name: "You are signed out" }).waitFor();
  });
}
