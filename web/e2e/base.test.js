// An app below a path: public_url is http://localhost:PORT/shop.
import assert from "node:assert/strict";
import { mkdir, mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { closeBrowser, launch } from "./browser.js";
import { serve } from "./serve.js";

/** The build, as Vite writes it with base: "/shop/". */
const files = {
  "index.html": `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Shop</title></head>
<body><p id="user"></p><p id="path"></p><button id="in">Sign in</button><button id="out">Sign out</button>
<script type="module" src="/shop/assets/app-BkRj3xGh.js"></script></body></html>`,
  "assets/app-BkRj3xGh.js": `
import { createClient } from "/shop/bff/client.js";
globalThis.client = createClient();
document.querySelector("#path").textContent = location.pathname;
document.querySelector("#in").onclick = () => client.login();
document.querySelector("#out").onclick = () => client.logout();
const { authenticated, user } = await client.session();
document.querySelector("#user").textContent = authenticated ? user.sub : "nobody";`,
};

/** @type {import("playwright-core").Browser} */
let browser;
let broker;
before(async () => {
  const dir = await mkdtemp(join(tmpdir(), "shop-"));
  await mkdir(join(dir, "assets"));
  for (const [name, text] of Object.entries(files)) await writeFile(join(dir, name), text);
  broker = await serve({ path: "/shop", frontend: { dir } });
  browser = await launch();
});
after(async () => {
  await closeBrowser(browser, "base");
  await broker?.stop();
});

test("an app below a path: deep link, sign-in, API call, silent login, logout", { timeout: 180_000 }, async () => {
  const { origin } = new URL(broker.baseURL);
  const context = await browser.newContext({ baseURL: origin });
  context.setDefaultTimeout(30_000);
  const page = await context.newPage();
  const outside = [];
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.origin === origin && url.pathname !== "/shop" && !url.pathname.startsWith("/shop/")) outside.push(url.pathname);
  });

  assert.equal((await page.goto("/shop?from=mail")).status(), 200);
  assert.equal(page.url(), `${origin}/shop/?from=mail`);
  await page.locator("#user", { hasText: "nobody" }).waitFor();

  await page.goto("/shop/orders/17?shelf=2#hook");
  await page.locator("#path", { hasText: "/shop/orders/17" }).waitFor();
  const refused = await page.evaluate(() => client.fetch("/shop/api/me").then((r) => r.status, (err) => String(err)));
  assert.match(String(refused), /401|sign/i);
  await page.locator("#in").click();
  await page.locator('button[name="user"][value="alice"]').click();
  await page.locator("#user", { hasText: "alice" }).waitFor();
  assert.equal(page.url(), `${origin}/shop/orders/17?shelf=2#hook`);

  assert.equal(await page.evaluate(async () => (await client.fetch("/shop/api/me")).status), 200);
  assert.equal(await page.evaluate(async () => (await fetch("/shop/api/me", { headers: { "X-CSRF": "1" } })).status), 200);
  const names = (await context.cookies(origin)).map((cookie) => cookie.name).filter((name) => name.includes("cloakroom"));
  assert.equal(names.length, 1, `cookies: ${names}`);
  assert.match(names[0], /^cloakroom-\d+\.[0-9a-f]{8}$/);

  const [own] = await context.cookies(origin);
  await context.clearCookies({ name: own.name });
  await page.reload();
  await page.locator("#user", { hasText: "nobody" }).waitFor();
  const framed = page.waitForResponse((response) => response.url().startsWith(`${origin}/shop/bff/callback?`));
  assert.equal(await page.evaluate(() => client.silentLogin({ timeout: 120_000 })), false); // the provider is on another site
  assert.equal((await framed).status(), 200);
  await page.locator("#in").click(); // the provider still has its session
  await page.locator("#user", { hasText: "alice" }).waitFor();

  await page.locator("#out").click();
  await page.waitForURL(`${origin}/shop/`);
  await page.locator("#user", { hasText: "nobody" }).waitFor();
  assert.deepEqual(outside, [], "requests of the app outside of its path");

  const elsewhere = await page.goto("/elsewhere");
  assert.equal(elsewhere.status(), 404);
  await page.getByRole("link").first().click();
  await page.waitForURL(`${origin}/shop/`);
  await context.close();
});
