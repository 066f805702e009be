// The Content-Security-Policy with builds of real tool chains. What `cloakroom csp` predicts is what Chromium blocks,
// and the policy that it prints makes every page work.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { cp, mkdtemp, readdir, readFile, writeFile } from "node:fs/promises";
import http from "node:http";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";

import { closeBrowser, launch } from "./browser.js";
import { host } from "./host.js";
import { cloakroom, repository } from "./process.js";

/**
 * @typedef {{ directive: string, sources: string[], default: boolean, what: string }} Need
 * @typedef {{ directive: string, blocked: string }} Violation
 * @typedef {import("playwright-core").Page} Page
 */

/**
 * Runs `cloakroom csp --json`.
 *
 * @param {string} dir
 * @returns {Promise<{ csp: Record<string, string[]>, needs: Need[] }>}
 */
async function predict(dir) {
  const { stdout } = await promisify(execFile)(await cloakroom(), ["csp", "--json", dir]);
  return JSON.parse(stdout);
}

/** Waits for a condition. @param {string} what @param {() => boolean | Promise<boolean>} condition */
async function until(what, condition) {
  for (const deadline = Date.now() + 30_000; !(await condition()); await new Promise((resolve) => setTimeout(resolve, 50))) {
    if (Date.now() > deadline) assert.fail(`not within 30 s: ${what}`);
  }
}

/** Waits until a page's root element has a text. @param {Page} page @param {string} text */
const showsInRoot = (page, text) => until(`${page.url()} shows ${text}`, async () => (await page.locator("#root").textContent()) === text);

/** Waits until an element has a colour. @param {Page} page @param {string} selector @param {string} color @param {string} [property] */
const hasColor = (page, selector, color, property = "color") =>
  until(`${selector} of ${page.url()} has ${property} ${color}`, () =>
    page.locator(selector).evaluate((element, [name, want]) => getComputedStyle(element)[name] === want, [property, color]),
  );

describe("Content-Security-Policy", { timeout: 300_000 }, () => {
  /** @type {import("playwright-core").Browser} */
  let browser;
  before(async () => {
    browser = await launch();
  });
  after(() => closeBrowser(browser, "csp"));

  /**
   * Serves a build while steps run, and returns the violations that Chromium reported, and the other errors of the
   * console.
   *
   * @param {string} dir
   * @param {Record<string, unknown>} frontend
   * @param {(open: (path: string) => Promise<Page>) => Promise<void>} steps
   * @param {number} [expected] how many violations to wait for
   */
  async function visit(dir, frontend, steps, expected = 0) {
    const server = await host(dir, frontend);
    const context = await browser.newContext({ baseURL: server.baseURL });
    context.setDefaultTimeout(30_000); // for busy machines
    /** @type {Violation[]} */
    const violations = [];
    /** @type {string[]} */
    const errors = [];
    await context.exposeBinding("reportViolation", (_, violation) => violations.push(violation));
    await context.addInitScript(() =>
      document.addEventListener("securitypolicyviolation", (e) =>
        window.reportViolation({ directive: e.effectiveDirective.replace(/-(elem|attr)$/, ""), blocked: e.blockedURI }),
      ),
    );
    context.on("console", (message) => message.type() === "error" && errors.push(message.text()));
    context.on("weberror", (error) => errors.push(`${error.error()}`));
    await steps(async (path) => {
      const page = await context.newPage();
      await page.goto(path, { waitUntil: "load" });
      return page;
    });
    await until(`${expected} violations`, () => violations.length >= expected);
    for (const page of context.pages()) await page.evaluate(() => document.title); // after what it has reported
    await context.close();
    await server.stop();
    return { violations, errors, log: server.output() };
  }

  /**
   * Asserts that each violation was predicted.
   *
   * @param {Violation[]} violations
   * @param {Need[]} needs
   */
  function assertPredicted(violations, needs) {
    for (const { directive, blocked } of violations) {
      const source = { inline: "'unsafe-hashes'", "wasm-eval": "'wasm-unsafe-eval'" }[blocked] ?? new URL(blocked).origin;
      const isPredicted = needs.some((need) => need.directive === directive && need.sources.includes(source) && !need.default);
      assert.ok(isPredicted, `${directive} blocked ${blocked}, which cloakroom csp did not predict`);
    }
  }

  describe("of a build by Angular", () => {
    const dir = join(repository, "web/e2e/builds/angular/dist");

    test("without configuration, the style sheet stays off", async () => {
      const { needs } = await predict(dir);
      const { violations, log } = await visit(dir, {}, async (open) => {
        const page = await open("/");
        await page.getByRole("button", { name: "Count 0" }).click();
        await page.getByRole("button", { name: "Count 1" }).waitFor();
        await hasColor(page, ".later", "rgb(0, 0, 0)");
      }, 1);
      assert.deepEqual(violations, [{ directive: "script-src", blocked: "inline" }]);
      assertPredicted(violations, needs);
      assert.match(log, /blocked by its policy.*onload of <link>.*inlineCritical/);
    });

    test("with the policy of cloakroom csp, all works", async () => {
      const { csp } = await predict(dir);
      const { violations, errors, log } = await visit(dir, { csp }, async (open) => {
        const page = await open("/");
        await page.getByRole("button", { name: "Count 0" }).click();
        await page.getByRole("button", { name: "Count 1" }).waitFor();
        await hasColor(page, ".later", "rgb(128, 0, 0)");
      });
      assert.deepEqual(violations, []);
      assert.deepEqual(errors, []);
      assert.doesNotMatch(log, /blocked by its policy/);
    });
  });

  describe("of a build by Vite", () => {
    /** @type {string} */
    let dir;
    /** @type {http.Server} */
    let second;
    /** @type {string[]} */
    const requests = [];

    before(async () => {
      second = http.createServer((request, response) => {
        requests.push(`${request.method} ${request.headers.host?.split(":")[0]}${request.url?.split("?")[0]}`);
        response.setHeader("Access-Control-Allow-Origin", "*");
        const font = `@font-face { font-family: Second; src: url(http://fonts.localhost:${port}/font.woff2); } body { font-family: Second; }`;
        const [type, body] = {
          "/font.css": ["text/css", font],
          "/image.svg": ["image/svg+xml", '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'],
        }[request.url] ?? ["text/plain", ""];
        response.setHeader("Content-Type", type);
        response.end(body);
      });
      second.listen(0, "127.0.0.1");
      await once(second, "listening");
      const { port } = second.address();
      dir = join(await mkdtemp(join(tmpdir(), "cloakroom-")), "dist");
      await cp(join(repository, "web/examples/libraries/dist"), dir, { recursive: true });
      for (const name of await readdir(dir, { recursive: true })) {
        if (!/\.(html|js)$/.test(name)) continue;
        const text = await readFile(join(dir, name), "utf8");
        await writeFile(join(dir, name), text.replaceAll(".localhost:1/", `.localhost:${port}/`));
      }
    });
    after(() => second?.close());

    test("emotion, MUI and blobs work without configuration", async () => {
      const { violations, errors } = await visit(dir, {}, async (open) => {
        const emotion = await open("/emotion");
        await emotion.getByRole("button").click();
        await hasColor(emotion, "button", "rgb(0, 0, 128)");
        await hasColor(emotion, "body", "rgb(250, 250, 240)", "backgroundColor");
        const mui = await open("/mui");
        await hasColor(mui, "button", "rgb(0, 100, 0)", "backgroundColor");
        await mui.getByLabel("Name").fill("Alice");
        await mui.getByRole("button").click();
        await mui.getByRole("dialog").waitFor();
        await showsInRoot(await open("/"), "7 21");
      });
      assert.deepEqual(violations, []);
      assert.deepEqual(errors, []);
    });

    test("inline styles can be disallowed, and are then predicted", async () => {
      const csp = { "style-src": [`'sha256-${createHash("sha256").update("a {}").digest("base64")}'`] };
      const { violations, log } = await visit(dir, { csp }, async (open) => void (await open("/mui")), 1);
      assert.deepEqual([...new Set(violations.map(({ directive }) => directive))], ["style-src"]);
      assert.match(log, /may block style elements that scripts make \(style-src\)/);
    });

    test("emotion and MUI need one hash instead of inline styles", async () => {
      const csp = { "style-src": [`'sha256-${createHash("sha256").update("").digest("base64")}'`] };
      const { violations, errors, log } = await visit(dir, { csp }, async (open) => {
        await hasColor(await open("/emotion"), "body", "rgb(250, 250, 240)", "backgroundColor");
        await hasColor(await open("/mui"), "button", "rgb(0, 100, 0)", "backgroundColor");
      });
      assert.deepEqual(violations, []);
      assert.deepEqual(errors, []);
      assert.doesNotMatch(log, /style elements that scripts make/);
    });

    test("WebAssembly is blocked without configuration", async () => {
      const { needs } = await predict(dir);
      const { violations } = await visit(dir, {}, async (open) => showsInRoot(await open("/wasm"), "failed: CompileError"), 1);
      assert.deepEqual(violations, [{ directive: "script-src", blocked: "wasm-eval" }]);
      assertPredicted(violations, needs);
    });

    test("second origins are blocked without configuration", async () => {
      const { needs } = await predict(dir);
      const before = requests.length;
      const { violations } = await visit(dir, {}, async (open) => showsInRoot(await open("/origins"), "failed: TypeError"), 3);
      assert.deepEqual(violations.map(({ directive }) => directive).sort(), ["connect-src", "img-src", "style-src"]);
      assertPredicted(violations, needs);
      assert.deepEqual(requests.slice(before), [], "requests to the second origins");
    });

    test("with the policy of cloakroom csp, all works", async () => {
      const { csp } = await predict(dir);
      const fonts = csp["style-src"].find((source) => source.startsWith("http://fonts.localhost"));
      csp["font-src"] = [fonts]; // what a style sheet of another origin loads is not in the build
      const { violations, errors, log } = await visit(dir, { csp }, async (open) => {
        await showsInRoot(await open("/wasm"), "2 + 3 = 5");
        const page = await open("/origins");
        await showsInRoot(page, "reported: 200");
        await until("the image is loaded", () => page.locator("#image").evaluate((image) => image.naturalWidth === 9));
        await until("the font is requested", () => requests.includes("GET fonts.localhost/font.woff2"));
      });
      assert.deepEqual(violations, []);
      assert.deepEqual(errors, []);
      assert.doesNotMatch(log, /blocked by its policy/);
      assert.ok(requests.includes("POST errors.localhost/api/42/envelope/"), `got ${requests}, want a report`);
    });

    test("a policy that only reports blocks nothing", async () => {
      const { violations } = await visit(dir, { csp_report_only: true }, async (open) => showsInRoot(await open("/wasm"), "2 + 3 = 5"), 1);
      assert.deepEqual(violations, [{ directive: "script-src", blocked: "wasm-eval" }]);
    });
  });
});
