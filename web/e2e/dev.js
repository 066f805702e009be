// `cloakroom dev` with the development server of a real tool, in Chromium.
import assert from "node:assert/strict";
import { once } from "node:events";
import { access, mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, join } from "node:path";
import { after, before, describe, test } from "node:test";

import { signIn } from "../client/testing.js";
import { closeBrowser, hotReloadConnects, launch } from "./browser.js";
import { cloakroom, freePort, start } from "./process.js";

/** The script of the command: it restarts the tool, whose pid it writes, unless there is a file `down`. */
const restarting = `while :; do
  if [ ! -e down ]; then "$@" & echo $! >pid; wait $!; fi
  sleep 0.1
done`;

/** Starts an API that keeps the Authorization of the last request. */
async function startAPI() {
  const seen = { authorization: "" };
  const server = createServer((request, response) => {
    seen.authorization = request.headers.authorization ?? "";
    response.setHeader("Content-Type", "application/json").end('{"ok":true}');
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return { seen, url: `http://127.0.0.1:${server.address().port}`, stop: () => server.close() };
}

/**
 * How the client of hot reload subscribes to updates. An update that the server builds before is sent to no page.
 *
 * @typedef {object} Subscriptions
 * @property {RegExp} sent matches a message to the server. Its group is the name of the subscription.
 * @property {RegExp} done matches a message of the server, after it has processed earlier subscriptions
 * @property {string} hydrated selects an element of a page that is hydrated, and shows an update
 */

/**
 * Tests `cloakroom dev` with a tool.
 *
 * @param {string} name
 * @param {{
 *   dir: () => Promise<string>,
 *   files: Record<string, string>,
 *   command: (port: number) => string[],
 *   message: string,
 *   signal?: NodeJS.Signals,
 *   keepsPage?: boolean,
 *   throughDev?: Record<string, string>,
 *   subscriptions?: Subscriptions,
 *   base?: string,
 * }} tool `files` of the app are written to `dir`. The app shows the text "first" of the file `message`. `signal`
 *   ends the server. If `keepsPage` is set, hot reload does not load the page again. A tool whose
 *   WebSocket does not go through dev by itself has files for that in `throughDev`. `subscriptions` describes those of
 *   hot reload, if there are any. The app is below the path `base`.
 */
export function developing(name, { dir: makeDir, files, command, message, signal = "SIGKILL", keepsPage = true, throughDev, subscriptions, base = "" }) {
  describe(`cloakroom dev with ${name}`, { timeout: 300_000 }, () => {
    /** @type {import("playwright-core").Browser | undefined} */
    let browser;
    let api, dev, dir;

    /** Writes files of the app. @param {Record<string, string>} [all] */
    const writeAll = async (all = {}) => {
      for (const [file, text] of Object.entries(all)) {
        await mkdir(dirname(join(dir, file)), { recursive: true });
        await writeFile(join(dir, file), text);
      }
    };

    before(async () => {
      const [, program] = command(0);
      await access(program).catch(() => assert.fail(`${program} is missing: run make setup examples`));
      dir = await makeDir();
      await writeAll(files);
      api = await startAPI();
      const args = ["dev", "--port", `${await freePort(2)}`, ...(base ? ["--base", base] : []), "--api", `/api=${api.url}`, "--", "sh", "-c", restarting, "sh"];
      dev = await start(await cloakroom(), [...args, ...command(await freePort())], {
        ready: /Open (http:\/\/localhost:\d+)[/ ]/,
        cwd: dir,
        env: { NEXT_TELEMETRY_DISABLED: "1", NG_CLI_ANALYTICS: "false" },
      });
      browser = await launch();
    });
    after(async () => {
      await closeBrowser(browser, `dev ${name}`);
      await dev?.stop();
      api?.stop();
      if (dir) await rm(dir, { recursive: true, force: true });
    });

    test("sign-in, an API call, hot reload, and a server that dies", async () => {
      const context = await browser.newContext({ baseURL: dev.match[1] });
      context.setDefaultTimeout(90_000); // the first page is compiled
      const page = await context.newPage();
      const sockets = [];
      page.on("websocket", (socket) => sockets.push(new URL(socket.url()).origin.replace("ws", "http")));
      const sub = () =>
        page.evaluate(async (base) => (await (await fetch(`${base}/bff/session`, { headers: { "X-CSRF": "1" } })).json()).user?.sub, base);
      /** Changes the app's text, which hot reload has to show. @param {string} from @param {string} to */
      const edit = async (from, to) => {
        const file = join(dir, message);
        const text = await readFile(file, "utf8");
        await page.evaluate(() => (globalThis.marker = 1));
        await writeFile(`${dir}.edited`, text.replace(from, to));
        await rename(`${dir}.edited`, file); // no tool sees a file that is half written
        await page.getByText(to).waitFor();
        if (keepsPage) assert.equal(await page.evaluate(() => globalThis.marker), 1, "the page was loaded again");
      };
      const outside = []; // of the app's path
      page.on("request", (request) => {
        const { protocol, origin, pathname } = new URL(request.url());
        if (protocol === "blob:") return; // Vite's client makes a worker when the server is away
        // Next.js' overlay does not know basePath, and a browser asks for an icon at the root.
        const isOther = pathname.startsWith("/__nextjs_") || pathname === "/favicon.ico";
        if (origin === dev.match[1] && !`${pathname}/`.startsWith(`${base}/`) && !isOther) outside.push(pathname);
      });
      let connected = awaitHotReload(page, subscriptions);
      await page.goto(`${base}/`);
      await page.getByText("first").waitFor();
      await connected();

      connected = awaitHotReload(page, subscriptions);
      await signIn(page, { sub: "carol", roles: ["admin"] }, { prefix: `${base}/bff` });
      await page.getByText("first").waitFor();
      assert.equal(await sub(), "carol");
      const call = () => page.evaluate(async (base) => (await fetch(`${base}/api/orders`, { headers: { "X-CSRF": "1" } })).status, base);
      assert.equal(await call(), 200);
      const [scheme, token] = api.seen.authorization.split(" ");
      assert.equal(scheme, "Bearer");
      const claims = JSON.parse(Buffer.from(token.split(".")[1], "base64url").toString());
      assert.equal(claims.sub, "carol");
      assert.deepEqual(claims.roles, ["admin"]);

      await connected();
      await edit("first", "second");
      assert.equal(await sub(), "carol");
      assert.equal(sockets.every((origin) => origin === dev.match[1]), !throughDev, `WebSockets of hot reload: ${sockets}`);

      await writeFile(join(dir, "down"), "");
      process.kill(Number(await readFile(join(dir, "pid"), "utf8")), signal);
      await until("a page says that the server is down", async () => {
        const response = await page.goto(`${base}/`, { waitUntil: "domcontentloaded" });
        return response.status() >= 500 && (await page.getByText("does not respond").count()) > 0;
      });
      assert.equal(await call(), 200); // the session and the API are as before
      await writeAll(throughDev);
      sockets.length = 0;
      connected = awaitHotReload(page, subscriptions);
      await rm(join(dir, "down"));
      await page.getByText("second").waitFor(); // the page loads itself again
      assert.equal(await sub(), "carol");
      if (throughDev) {
        await connected();
        await edit("second", "third");
        assert.ok(sockets.every((origin) => origin === dev.match[1]), `WebSockets of hot reload: ${sockets}`);
      }
      if (base) await pickAndInspect(page, base);
      assert.deepEqual(outside, [], `requests outside of ${base}`);
      assert.doesNotMatch(dev.output(), /The development server redirects|The page of the development server refers/);
      await context.close();
    });
  });
}

/**
 * Follows hot reload of the next page. Call it before what loads the page.
 *
 * @param {import("playwright-core").Page} page
 * @param {Subscriptions} [subscriptions] if the server sends updates of what a page subscribes to only
 * @returns {() => Promise<void>} waits until the page gets the next update
 */
function awaitHotReload(page, subscriptions) {
  if (!subscriptions) {
    const connected = hotReloadConnects(page);
    return () => connected;
  }
  const [subscribed, pending] = [new Set(), new Set()];
  page.once("websocket", (socket) => {
    socket.on("framesent", ({ payload }) => {
      const name = String(payload).match(subscriptions.sent)?.[1];
      if (!name || subscribed.has(name)) return;
      subscribed.add(name);
      pending.add(name);
    });
    socket.on("framereceived", ({ payload }) => {
      if (subscriptions.done.test(String(payload))) pending.clear();
    });
  });
  return async () => {
    await page.locator(subscriptions.hydrated).waitFor();
    await until("hot reload has subscribed", async () => subscribed.size > 0 && pending.size === 0);
  };
}

/** Signs in with the picker, and ends the session in the inspector. @param {import("playwright-core").Page} page @param {string} base */
async function pickAndInspect(page, base) {
  await page.goto(`${base}/bff/dev`);
  await page.getByText("Signed in as carol").waitFor();
  await page.getByRole("button", { name: "End the session" }).click();
  await page.getByRole("link", { name: "Sign in", exact: true }).waitFor();
  await page.goto(`${base}/bff/login?prompt=login`); // the provider still has a session of carol
  await page.locator('button[name="user"][value="bob"]').click();
  await page.getByText("second").waitFor();
  assert.equal(new URL(page.url()).pathname, `${base}/`);
  await page.goto(`${base}/bff/dev`);
  await page.getByText("Signed in as bob").waitFor();
}

/** Waits until a condition holds. @param {string} what @param {() => Promise<boolean>} holds */
async function until(what, holds) {
  for (const deadline = Date.now() + 60_000; !(await holds()); ) {
    if (Date.now() > deadline) throw new Error(`not within a minute: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
