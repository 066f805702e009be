// Tests of the sample app in a browser, for every way to serve it.
import assert from "node:assert/strict";
import http from "node:http";
import { after, before, describe, test } from "node:test";

import { launch, savePages, saveScreenshot, streamOpens } from "./browser.js";

/**
 * @typedef {{ baseURL: string, stop: () => Promise<void> }} Deployment
 * @typedef {import("playwright-core").Page} Page
 */

/**
 * Registers the tests for one way to run the broker.
 *
 * @param {string} name
 * @param {() => Promise<Deployment>} deploy
 * @param {{ tokenLife: number }} options tokenLife is the life of an access token, in seconds
 */
export function journeys(name, deploy, { tokenLife }) {
  describe(name, { timeout: 300_000 }, () => {
    /** @type {Deployment} */
    let deployment;
    /** @type {import("playwright-core").Browser} */
    let browser;

    before(async () => {
      deployment = await deploy();
      browser = await launch();
    });
    after(async () => {
      await browser?.close();
      await deployment?.stop();
    });

    /**
     * Registers a test with its own browser profile. It also fails if a page logs an error or contains a token.
     *
     * @param {string} title
     * @param {(visit: { open: (path?: string) => Promise<Page>, shot: (page: Page, state: string) => Promise<void>, context: import("playwright-core").BrowserContext }) => Promise<void>} steps
     */
    function journey(title, steps) {
      test(title, async () => {
        const context = await browser.newContext({ baseURL: deployment.baseURL, viewport: { width: 1280, height: 900 } });
        context.setDefaultTimeout(30_000); // for busy machines
        const watcher = watch(context, deployment.baseURL);
        try {
          await steps({
            context,
            async open(path = "/") {
              const page = await context.newPage();
              await page.goto(path);
              await page.locator('body:not([data-state="loading"])').waitFor();
              return page;
            },
            shot: (page, state) => shoot(page, `${name} ${state}`),
          });
          for (const page of context.pages()) await holdsNoToken(page);
          await watcher.isClean();
        } catch (err) {
          await savePages(context, `${name} ${title}`);
          throw err;
        } finally {
          await context.close();
        }
      });
    }

    journey("without a session: sign-in button, public API works", async ({ open, shot }) => {
      const page = await open();
      await page.locator("#sign-in").waitFor();
      assert.equal(await page.locator("#user-name").isVisible(), false);
      await shot(page, "signed out");

      assert.deepEqual(await call(page, "#call-public"), { path: "/public/time", status: 200 });
      assert.deepEqual(await call(page, "#call-me"), { path: "/api/me", status: 401 });
      assert.equal(await page.locator("#signed-out-notice").isVisible(), false); // the user was not signed in
      await shot(page, "signed out, refused");
    });

    journey("sign in by keyboard, return to the same page, call the API", async ({ open, shot, context }) => {
      const page = await open("/coats/17?shelf=2#hook");
      await page.locator("#sign-in").focus();
      await page.keyboard.press("Enter");
      await atProvider(page);
      await page.locator("#user-name").waitFor();
      assert.match(await page.locator("#user-name").innerText(), /alice/i);
      assert.equal(page.url(), `${deployment.baseURL}/coats/17?shelf=2#hook`);
      assert.match(await page.locator("#token-countdown").innerText(), /^\d+:\d\d$/);
      await shot(page, "signed in");

      assert.deepEqual(await call(page, "#call-me"), { path: "/api/me", status: 200 });
      assert.match(await page.locator("#result").innerText(), /alice/i);
      assert.deepEqual(await call(page, "#call-orders"), { path: "/api/orders", status: 200 });
      await shot(page, "a response");
      assert.deepEqual(await call(page, "#call-public"), { path: "/public/time", status: 200 });
      assert.deepEqual(await call(page, "#call-admin"), { path: "/api/admin", status: 403 });
      assert.match(await page.locator("#result").innerText(), /insufficient_scope/);
      assert.equal(await page.locator("#user-name").isVisible(), true); // a 403 is no sign-out
      await shot(page, "not allowed");

      const [cookie, ...others] = (await context.cookies(deployment.baseURL)).filter((c) => c.name.includes("cloakroom"));
      assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.path, others.length], [true, "Strict", "/", 0]);

      await page.locator("#look").click();
      await page.locator("#look-result[data-verdict]").waitFor();
      assert.equal(await page.locator("#look-result").getAttribute("data-verdict"), "clean");
      await shot(page, "what JavaScript sees");
    });

    journey("the check for tokens detects a token", async ({ open, shot }) => {
      const page = await open();
      const injected = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.";
      await page.evaluate((token) => localStorage.setItem("token", token), injected);
      await page.locator("#look").click();
      await page.locator('#look-result[data-verdict="found"]').waitFor();
      await shot(page, "a token detected");
      await assert.rejects(holdsNoToken(page), /localStorage/); // the check of the tests
      await page.evaluate(() => localStorage.clear());
    });

    journey("API calls succeed during token refreshes", async ({ open, shot }) => {
      const page = await open();
      const signInAt = Date.now();
      await signIn(page);
      const signedInAt = Date.now();
      const ticket = await page.locator("#ticket-number").innerText();
      await page.locator("#keep-calling").check();
      await page.locator('#tally:not([data-refreshes="0"]):not([data-refreshes="1"])').waitFor({ timeout: tokenLife * 4000 });
      assert.ok(Date.now() - signInAt > (tokenLife / 2) * 1000, "the second refresh came too early");
      const tally = () => page.locator("#tally").evaluate(({ dataset }) => ({ calls: Number(dataset.calls), failures: Number(dataset.failures) }));
      // Until the first token has expired.
      while (Date.now() - signedInAt < tokenLife * 1500 || (await tally()).calls <= tokenLife) await nextCall(page);
      assert.equal((await tally()).failures, 0);
      await page.locator("#keep-calling").uncheck();
      await shot(page, "after refreshes");

      await page.reload();
      await page.locator("#user-name").waitFor();
      assert.equal(await page.locator("#ticket-number").innerText(), ticket, "the reload keeps the session");

      const before = await expiry(page);
      await page.locator("#refresh-now").click();
      await page.waitForFunction((previous) => Date.parse(document.querySelector("#token-countdown").dataset.expiresAt) > previous, before);
      // An event of the broker may show the new expiry before the response to the click.
      await page.locator("#refresh-note", { hasText: "because you asked" }).waitFor();
    });

    journey("all tabs notice a session ended elsewhere", async ({ open, shot, context }) => {
      const page = await open();
      await Promise.all([streamOpens(page), signIn(page)]);
      const other = await open();
      await other.locator("#user-name").waitFor(); // the same session in a second tab

      // As on another device or at the provider: no tab does it.
      const ended = await context.request.post(`${deployment.baseURL}/bff/logout`, { headers: { "X-CSRF": "1", Accept: "application/json" } });
      assert.equal(ended.status(), 200);

      await page.locator("#signed-out-notice").waitFor(); // by an event of the broker
      assert.equal(await page.locator("#user-name").isVisible(), false);
      await other.locator("#signed-out-notice").waitFor(); // by a message of the other tab
      assert.deepEqual(await call(page, "#call-me"), { path: "/api/me", status: 401 });
      await shot(page, "signed out elsewhere");

      await page.locator("#sign-in-again").click();
      await atProvider(page);
      await page.locator("#user-name").waitFor();
      assert.equal(await page.locator("#signed-out-notice").isVisible(), false);
      await other.locator("#user-name").waitFor(); // the other tab is signed in too
    });

    journey("another site can start a login but not replace the user", async ({ open, shot }) => {
      const otherSite = http.createServer((request, response) => {
        response.setHeader("Content-Type", "text/html");
        response.end(`<a href="${deployment.baseURL}/bff/login?prompt=login&return_to=/from-there">Coats</a>`);
      });
      await new Promise((listening) => otherSite.listen(0, "127.0.0.1", listening));
      try {
        const page = await open();
        const follow = async (user) => {
          await page.goto(`http://127.0.0.1:${otherSite.address().port}/`);
          await page.locator("a").click();
          await page.locator(`button[name="user"][value="${user}"]`).click();
        };
        await follow("alice");
        await page.locator("#user-name").waitFor();
        assert.equal(page.url(), `${deployment.baseURL}/from-there`);

        await follow("bob");
        await page.locator("code", { hasText: "other_account" }).waitFor();
        await shot(page, "another account");
        await page.goto("/");
        await page.locator("#user-name").waitFor();
        assert.match(await page.locator("#user-name").innerText(), /alice/i);

        await follow("alice"); // the same user
        await page.locator("#user-name").waitFor();
      } finally {
        otherSite.closeAllConnections();
        otherSite.close();
      }
    });

    journey("signing out in one tab signs out all tabs", async ({ open, context }) => {
      const page = await open();
      await Promise.all([streamOpens(page), signIn(page)]);
      const other = await open("/elsewhere");
      await other.locator("#user-name").waitFor();
      await page.locator("#sign-out").click();
      await page.waitForURL(`${deployment.baseURL}/`);
      await page.locator("#sign-in").waitFor();
      await other.locator("#signed-out-notice").waitFor(); // without a call of its own
      assert.deepEqual((await context.cookies(deployment.baseURL)).filter((c) => c.name.includes("cloakroom")), []);
      assert.deepEqual(await call(other, "#call-me"), { path: "/api/me", status: 401 });

      await page.goBack(); // which may restore the page from the back/forward cache
      await page.goForward();
      await page.locator("#sign-in").waitFor();
      assert.equal(await page.locator("#user-name").isVisible(), false);
    });
  });
}

/** Signs in as alice. @param {Page} page */
export async function signIn(page) {
  await page.locator("#sign-in").click();
  await atProvider(page);
  await page.locator("#user-name").waitFor();
}

/** Selects alice at the provider, unless it has a session of hers. @param {Page} page */
async function atProvider(page) {
  const alice = page.locator('button[name="user"][value="alice"]');
  await alice.or(page.locator("#user-name")).filter({ visible: true }).first().waitFor();
  if (await alice.isVisible()) await alice.click();
}

/**
 * Clicks a button that calls the API, and returns the path and the status of the response.
 *
 * @param {Page} page
 * @param {string} button
 */
async function call(page, button) {
  const path = await page.locator(button).getAttribute("data-path");
  const responded = page.waitForResponse((response) => new URL(response.url()).pathname === path);
  await page.locator(button).click();
  const status = (await responded).status();
  await page.locator(`#result[data-path="${path}"][data-status="${status}"]`).waitFor();
  await page.locator(`${button}[aria-busy="false"]`).waitFor();
  return { path, status };
}

/** @param {Page} page */
const nextCall = (page) => page.waitForResponse((response) => response.url().endsWith("/api/me"));

/** @param {Page} page */
const expiry = (page) => page.locator("#token-countdown").evaluate((clock) => Date.parse(clock.dataset.expiresAt));

const jwt = /eyJ[\w-]{5,}\.[\w-]*\.[\w-]*/;
const tokenMember = /(access|refresh|id)_token\W{1,4}[\w-]{8}/;

/** @param {string} where @param {string} text */
function assertNoToken(where, text) {
  for (const token of [jwt, tokenMember]) assert.doesNotMatch(text, token, `${where} contains what looks like a token`);
}

/** Fails if a token is in any place that a script of the page can read. @param {Page} page */
async function holdsNoToken(page) {
  const places = await page.evaluate(async () => ({
    "document.cookie": document.cookie,
    localStorage: JSON.stringify({ ...localStorage }),
    sessionStorage: JSON.stringify({ ...sessionStorage }),
    indexedDB: JSON.stringify(await indexedDB.databases()),
    caches: JSON.stringify(await caches.keys()),
    "window.name": window.name,
    history: JSON.stringify(history.state),
    location: location.href,
    document: document.documentElement.outerHTML,
  }));
  for (const [place, text] of Object.entries(places)) assertNoToken(place, text);
  assert.doesNotMatch(places["document.cookie"], /cloakroom/);
}

/**
 * Records the errors and warnings of the pages of a context, the responses that they receive and the URLs that they show.
 *
 * @param {import("playwright-core").BrowserContext} context
 * @param {string} baseURL
 */
function watch(context, baseURL) {
  const errors = [];
  const addresses = [];
  /** @type {Promise<{ url: string, text: string } | undefined>[]} */
  const responses = [];

  context.on("page", (page) => {
    page.on("pageerror", (err) => errors.push(String(err)));
    page.on("framenavigated", (frame) => addresses.push(frame.url()));
    page.on("response", (response) => {
      if (!response.url().startsWith(`${baseURL}/`) || (response.status() >= 300 && response.status() < 400)) return;
      if (response.url().includes("/session/events")) return; // it does not end; its events have the body of /bff/session
      const text = response.body().then((body) => body.toString());
      responses.push(
        Promise.all([text, response.allHeaders()]).then(
          ([body, headers]) => ({ url: response.url(), text: JSON.stringify(headers) + body }),
          () => undefined, // the page navigated away before the body was read
        ),
      );
    });
  });
  context.on("console", (message) => {
    const { url } = message.location();
    // Browsers log every such response. The journeys expect these.
    const expected = /^Failed to load resource: the server responded with a status of (401|403) /.test(message.text()) && (url.startsWith(`${baseURL}/api/`) || url.startsWith(`${baseURL}/bff/callback?`));
    if (["error", "warning"].includes(message.type()) && !expected) errors.push(`${message.text()} (${url})`);
  });

  return {
    async isClean() {
      assert.deepEqual(errors, []);
      const read = (await Promise.all(responses)).filter((response) => response !== undefined);
      for (const path of ["/bff/session", "/bff/client.js", "/demo.js"]) {
        assert.ok(read.some(({ url }) => new URL(url).pathname === path), `the response of ${path} was not checked`);
      }
      for (const { url, text } of read) assertNoToken(url, text);
      // The callback of a login from another site is a page that navigates to return_to.
      for (const address of addresses.filter((a) => a.startsWith(`${baseURL}/`) && !a.startsWith(`${baseURL}/bff/callback?`))) {
        const { searchParams, hash } = new URL(address);
        for (const name of ["code", "state", "session_state", "iss"]) assert.ok(!searchParams.has(name), `${name} is still in ${address}`);
        assert.doesNotMatch(hash, /code=|state=|token=/);
      }
    },
  };
}

/**
 * Saves screenshots of a state: light and dark, on a desktop and on a phone. It fails if the page is wider than the phone.
 *
 * @param {Page} page
 * @param {string} name
 */
export async function shoot(page, name) {
  const file = name.replaceAll(/[^a-z]+/gi, "-");
  for (const [device, width] of [["desktop", 1280], ["phone", 390]]) {
    await page.setViewportSize({ width, height: 900 });
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      await saveScreenshot(page, `${file}-${device}-${colorScheme}`, { fullPage: true });
    }
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `the page is wider than ${width} pixels`);
  }
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.emulateMedia({ colorScheme: null, reducedMotion: null });
}
