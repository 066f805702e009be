// The pages that the broker itself shows, in a browser.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { after, before, describe, test } from "node:test";

import { closeBrowser, launch, saveScreenshot } from "./browser.js";
import { serve } from "./serve.js";

const pages = {
  "not-found": { path: "/bff/unknown", en: "Not found", de: "Nicht gefunden" },
  "login-failed": { path: "/bff/callback?state=x", en: "This sign-in cannot be completed", de: "Diese Anmeldung kann nicht abgeschlossen werden" },
  "signed-out": { path: "/bff/signed-out", en: "You are signed out", de: "Sie sind abgemeldet" },
};

describe("pages", { timeout: 600_000 }, () => {
  /** @type {Awaited<ReturnType<typeof serve>>} */
  let deployment;
  /** @type {import("playwright-core").Browser} */
  let browser;
  /** @type {string} */
  let axe;

  before(async () => {
    axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
    deployment = await serve();
    browser = await launch();
  });
  after(async () => {
    await closeBrowser(browser, "pages");
    await deployment?.stop();
  });

  for (const colorScheme of /** @type {const} */ (["light", "dark"])) {
    for (const width of [1280, 360]) {
      for (const [locale, language] of /** @type {const} */ ([["en-GB", "en"], ["de-AT", "de"]])) {
        test(`accessible and within the screen: ${colorScheme}, ${width} px, ${language}`, async () => {
          const context = await browser.newContext({ colorScheme, locale, viewport: { width, height: 800 } });
          const page = await context.newPage();
          const requests = [];
          page.on("request", (request) => requests.push(request.url()));
          for (const [name, { path, ...titles }] of Object.entries(pages)) {
            requests.length = 0;
            await page.goto(deployment.baseURL + path);
            assert.equal(await page.locator("h1").textContent(), titles[language]);
            assert.equal(await page.locator("html").getAttribute("lang"), language);
            assert.deepEqual(requests.filter((url) => !url.endsWith("/favicon.ico")), [deployment.baseURL + path], "a page needs nothing else");
            await saveScreenshot(page, `${name}-${language}-${colorScheme}-${width}`);
            assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${name} is too wide`);
            // The CSP of the page does not allow axe as a script element.
            const { violations } = await page.evaluate(`${axe}; axe.run()`);
            assert.deepEqual(violations.map((v) => [v.id, v.nodes.map((n) => n.html)]), [], name);
          }
          await context.close();
        });
      }
    }
  }
});
