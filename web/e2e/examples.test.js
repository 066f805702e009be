// The apps in web/examples in a browser, with what a user of them does.
import assert from "node:assert/strict";
import { access, readFile, writeFile, mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { closeBrowser, launch, savePages } from "./browser.js";
import { startAPI } from "./exampleapi.js";
import { repository } from "./process.js";
import { serve } from "./serve.js";

/** @typedef {import("playwright-core").Page} Page */

/** The examples, by their output in web/examples. */
const examples = { "plain HTML": "plain", "React Router": "react-router/dist", Vue: "vue/dist" };

for (const [name, dir] of Object.entries(examples)) {
  describe(name, { timeout: 600_000 }, () => {
    /** @type {Awaited<ReturnType<typeof startAPI>>} */
    let api;
    /** @type {Awaited<ReturnType<typeof serve>>} */
    let deployment;
    /** @type {import("playwright-core").Browser} */
    let browser;

    before(async () => {
      const path = join(repository, "web/examples", dir);
      await access(join(path, "index.html")).catch(() => assert.fail(`${path} has no build: run make examples`));
      api = await startAPI();
      deployment = await serve({
        frontend: { dir: path },
        api: api.url,
        routes: [{ path: "/api/admin/", upstream: api.url, token: "user", require: { acr: ["gold"] } }],
        session: { idle_timeout: "40s" },
      });
      browser = await launch();
    });
    after(async () => {
      await closeBrowser(browser, name);
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

    journey("the guard leads to the sign-in, and back to a deep link", async (page) => {
      await signIn(page, "/orders/7?from=mail#top");
      await page.getByText("Order 7: Coat").waitFor();
      assert.equal(page.url(), `${deployment.baseURL}/orders/7?from=mail#top`);
      await page.getByText("8: Hat").waitFor();
      await page.waitForFunction(() => document.querySelector("img").naturalWidth > 0);
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
      await page.getByText("Order 7").or(page.getByText("7: Coat")).first().waitFor();
      await page.getByRole("button", { name: "Close the year" }).click();
      await page.getByText("The year is closed.").waitFor();
    });

    journey("the user is warned before the session ends, and prevents it", async (page) => {
      await signIn(page);
      await page.getByText(/You will be signed out in \d+ s/).waitFor();
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
      await other.goto("/");
      await other.getByRole("button", { name: "Sign out" }).first().click();
      await page.getByText("You were signed out.").waitFor();
      const opened = page.context().waitForEvent("page");
      await page.getByRole("button", { name: "Sign in again" }).click();
      const popup = await opened;
      await popup.locator('button[name="user"][value="alice"]').click();
      await page.getByText("You were signed out.").waitFor({ state: "hidden" });
      assert.equal(await page.getByLabel("Message").inputValue(), "not sent yet");
    });

    journey("offline, and while the store is down, the page says so and stays", async (page) => {
      await signIn(page);
      await page.context().setOffline(true);
      await page.waitForFunction(
        () => {
          dispatchEvent(new Event("focus")); // the client checks every 5 s at most
          return document.body.textContent.includes("The app cannot be reached.");
        },
        undefined,
        { polling: 1000 },
      );
      await page.context().setOffline(false);
      await page.getByText("The app cannot be reached.").waitFor({ state: "hidden" });

      deployment.freezeStore(true);
      try {
        // The broker uses its cache until it notices.
        const status = () => fetch("/bff/session", { headers: { "X-CSRF": "1" } }).then((response) => response.status);
        while ((await page.evaluate(status)) !== 503);
        await page.reload();
        await page.getByText("The app cannot be reached.").waitFor();
      } finally {
        deployment.freezeStore(false);
      }
      await page.getByText("7: Coat").waitFor();
    });

    journey("signing out ends at the page that says so", async (page) => {
      await signIn(page);
      await page.getByRole("button", { name: "Sign out" }).first().click();
      await page.getByRole("heading", { name: "You are signed out" }).waitFor();
    });
  });
}

/** Opens a page, signs in as alice and waits for the orders. @param {Page} page @param {string} [path] */
async function signIn(page, path = "/") {
  await page.goto(path);
  await page.locator('button[name="user"][value="alice"]').click();
  await page.getByText("7: Coat").first().waitFor();
}
