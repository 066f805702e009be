// The notice of the client after an end of the session, in a browser: accessible in every app.
import assert from "node:assert/strict";
import { copyFile, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { closeBrowser, launch, saveScreenshot, streamOpens } from "./browser.js";
import { repository } from "./process.js";
import { serve } from "./serve.js";

const script = `
import { createClient } from "./client.js";
import { signInNotice } from "./notice.js";

const client = createClient();
if ((await client.session()).authenticated) signInNotice(client);
else client.login();
`;

// What apps do to elements: a reset, a dark theme without color-scheme, a dialog that shines through.
const theme = `
* { margin: 0; padding: 0; border: 0; font: inherit; line-height: 1; text-align: right; }
body { background: #111; color: #eee; }
h2, p { color: #eee; }
button { background: transparent; color: #eee; font-size: 12px; text-transform: lowercase; }
dialog { background: rgb(0 0 0 / 50%); color: #eee; opacity: 0.9; }
`;

/** @param {string} lang @param {string} [head] */
const html = (lang, head = "") => `<!doctype html>
<html lang="${lang}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Letters</title>
<link rel="icon" href="data:,">
${head}
<script type="module" src="/page.js"></script>
</head>
<body><main><h1>Letters</h1><p><button>Send</button></p><textarea aria-label="Letter"></textarea></main></body>
</html>
`;

const texts = {
  en: { title: "You were signed out.", description: "You signed out in another tab or window. This page is kept.", button: "Sign in again" },
  de: { title: "Sie wurden abgemeldet.", description: "Sie haben sich in einem anderen Tab oder Fenster abgemeldet. Diese Seite bleibt erhalten.", button: "Erneut anmelden" },
};

describe("the notice", { timeout: 300_000 }, () => {
  /** @type {Awaited<ReturnType<typeof serve>>} */
  let deployment;
  /** @type {import("playwright-core").Browser} */
  let browser;
  /** @type {string} */
  let axe;
  /** @type {string} */
  let dir;

  before(async () => {
    axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
    dir = await mkdtemp(join(tmpdir(), "cloakroom-notice-"));
    for (const file of ["client.js", "notice.js"]) await copyFile(join(repository, "web/client", file), join(dir, file));
    const colorScheme = '<meta name="color-scheme" content="light dark">';
    const files = {
      "page.js": script,
      "theme.css": theme,
      "index.html": html("en", colorScheme),
      "en.html": html("en", colorScheme),
      "de.html": html("de", colorScheme),
      "theme.html": html("en", '<link rel="stylesheet" href="/theme.css">'),
      "ar.html": html("ar").replace("<html", '<html dir="rtl"'),
    };
    for (const [file, text] of Object.entries(files)) await writeFile(join(dir, file), text);
    deployment = await serve({ frontend: { dir } });
    browser = await launch();
  });
  after(async () => {
    await closeBrowser(browser, "notice");
    await deployment?.stop();
    await rm(dir, { recursive: true });
  });

  /**
   * Runs steps with a page whose session has ended while the user wrote a letter.
   *
   * @param {string} path
   * @param {(page: import("playwright-core").Page, context: import("playwright-core").BrowserContext) => Promise<void>} steps
   */
  async function ended(path, steps) {
    const context = await browser.newContext({ baseURL: deployment.baseURL });
    context.setDefaultTimeout(30_000);
    const page = await context.newPage();
    const errors = [];
    page.on("pageerror", (err) => errors.push(String(err)));
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && errors.push(message.text()));
    await page.goto(path);
    await page.locator('button[name="user"][value="alice"]').waitFor();
    await Promise.all([streamOpens(page), page.locator('button[name="user"][value="alice"]').click()]);
    await page.getByLabel("Letter").fill("a long letter");
    const response = await context.request.post("/bff/logout", { headers: { "X-CSRF": "1", Accept: "application/json" } });
    assert.equal(response.status(), 200);
    await page.getByRole("dialog").waitFor();
    await steps(page, context);
    assert.deepEqual(errors, []);
    await context.close(); // not after a failure: closeBrowser saves its pages
  }

  for (const [name, language] of /** @type {const} */ ([["en", "en"], ["de", "de"], ["theme", "en"], ["ar", "en"]])) {
    test(`accessible on the page ${name}, light and dark, on a desktop and a phone`, () =>
      ended(`/${name}.html`, async (page, context) => {
        const text = texts[language];
        const dialog = page.getByRole("dialog", { name: text.title, exact: true });
        const button = dialog.getByRole("button", { name: text.button, exact: true });
        const tree = await context.newCDPSession(page);
        const { root } = await tree.send("DOM.getDocument");
        const { nodes } = await tree.send("Accessibility.queryAXTree", { nodeId: root.nodeId, role: "dialog" });
        assert.deepEqual(nodes.map((node) => [node.name.value, node.description?.value]), [[text.title, text.description]]);
        assert.deepEqual(await dialog.evaluate(({ lang, dir }) => [lang, dir]), [language, "ltr"]);

        for (const colorScheme of /** @type {const} */ (["light", "dark"])) {
          for (const [width, height] of [[1280, 800], [320, 568], [568, 256]]) {
            const state = `${name}, ${colorScheme}, ${width} px`;
            await page.emulateMedia({ colorScheme });
            await page.setViewportSize({ width, height });
            await saveScreenshot(page, `notice-${name}-${colorScheme}-${width}`);

            // The CSP of the page does not allow axe as a script element.
            const { violations, incomplete } = await page.evaluate(`${axe}; axe.run({ rules: { "target-size": { enabled: true } } })`);
            assert.deepEqual([...violations, ...incomplete].map((v) => [v.id, v.nodes.map((n) => n.html)]), [], state);

            const box = await button.boundingBox();
            assert.ok(box.width >= 44 && box.height >= 44, `${state}: the button has ${box.width} × ${box.height} px, want at least 44 × 44`);
            assert.ok(box.x >= 0 && box.x + box.width <= width && box.y >= 0 && box.y + box.height <= height, `${state}: the button is outside the screen`);
            assert.ok(await dialog.evaluate((element) => element.scrollWidth <= innerWidth), `${state}: the notice is too wide`);
            // The next person at the screen does not see the page.
            assert.deepEqual(await dialog.boundingBox(), { x: 0, y: 0, width, height }, state);
            const style = await dialog.evaluate((element) => [getComputedStyle(element).backgroundColor, getComputedStyle(element).opacity]);
            assert.match(style.join(" "), /^rgb\(.*\) 1$/, `${state}: the page shines through`);
          }
        }
      }));
  }

  test("the focus is in the notice, and then where it was", () =>
    ended("/en.html", async (page, context) => {
      const focused = () => page.evaluate(() => document.activeElement?.textContent || document.activeElement?.ariaLabel);
      assert.equal(await focused(), "Sign in again");
      for (const key of ["Tab", "Tab", "Shift+Tab", "Shift+Tab", "Shift+Tab", "Escape", "Escape"]) {
        await page.keyboard.press(key);
        await page.keyboard.type("x");
        assert.notEqual(await focused(), "Letter", `after ${key}`);
        assert.notEqual(await focused(), "Send", `after ${key}`);
      }
      assert.equal(await page.locator("textarea").inputValue(), "a long letter");

      await page.locator("dialog button").focus();
      const [popup] = await Promise.all([context.waitForEvent("page"), page.keyboard.press("Enter")]);
      await Promise.all([streamOpens(page), popup.locator('button[name="user"][value="alice"]').click()]);
      await page.locator("dialog").waitFor({ state: "detached" });
      assert.equal(await focused(), "Letter");
      await page.keyboard.type(" and more");
      assert.equal(await page.getByLabel("Letter").inputValue(), "a long letter and more");
    }));
});
