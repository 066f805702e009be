// What the tests with a provider share: Redis, the broker, a browser, and an API that verifies tokens with oauth4webapi.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { allowInsecureRequests, discoveryRequest, processDiscoveryResponse, validateJwtAccessToken } from "oauth4webapi";

import { cloakroom, freePort, repository, start } from "../e2e/process.js";

/** @typedef {{ url: string, accepted: object[], rejected: string[], wantNonce: (nonce?: string) => void, close: () => void }} API */

/**
 * Starts an API. It accepts access tokens of the issuer for the audience that are JWTs (RFC 9068). A token that is bound to a key needs a DPoP proof, with
 * the nonce that wantNonce has set.
 *
 * @param {string} issuer
 * @param {{ audience: string, requireDPoP?: boolean, validate?: Function }} options validate verifies a request and returns the claims, instead of oauth4webapi
 * @returns {Promise<API>}
 */
export async function startAPI(issuer, { audience, requireDPoP = false, validate }) {
  const accepted = [];
  const rejected = [];
  let nonce;
  let as;
  const server = createServer(async (req, res) => {
    const url = `http://127.0.0.1:${server.address().port}${req.url}`;
    try {
      const at = new URL(issuer);
      as ??= await processDiscoveryResponse(at, await discoveryRequest(at, { [allowInsecureRequests]: true }));
      const headers = new Headers(Object.entries(req.headers).filter(([, value]) => typeof value === "string"));
      const request = new Request(url, { method: req.method, headers });
      const claims = await (validate ? validate(as, request, audience) : validateJwtAccessToken(as, request, audience, { requireDPoP, [allowInsecureRequests]: true }));
      if (nonce) {
        res.setHeader("DPoP-Nonce", nonce);
        const proof = JSON.parse(Buffer.from(headers.get("DPoP").split(".")[1], "base64url"));
        if (proof.nonce !== nonce) {
          res.setHeader("WWW-Authenticate", 'DPoP error="use_dpop_nonce"');
          res.writeHead(401).end();
          return;
        }
      }
      accepted.push(claims);
      res.setHeader("Content-Type", "application/json");
      res.end(JSON.stringify({ sub: claims.sub, acr: claims.acr ?? null, jkt: claims.cnf?.jkt ?? null, aud: claims.aud, scope: claims.scope, jti: claims.jti }));
    } catch (err) {
      rejected.push(`${req.method} ${req.url}: ${err.message} ${err.cause ? JSON.stringify(err.cause) : ""}`);
      res.setHeader("WWW-Authenticate", 'Bearer error="invalid_token"');
      res.writeHead(401).end(err.message);
    }
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    accepted,
    rejected,
    wantNonce: (wanted) => (nonce = wanted),
    close: () => server.close(),
  };
}

/** Starts a server that sends a JSON text. @param {string} text */
export async function serve(text) {
  const server = createServer((_, res) => res.setHeader("Content-Type", "application/json").end(text)).listen(0, "127.0.0.1");
  await once(server, "listening");
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() };
}

/**
 * Starts Redis and the broker.
 *
 * @param {number} port of the broker
 * @param {(baseURL: string) => object} configure returns the configuration without server and store
 * @param {string} [host] another host for a second broker, because cookies do not tell ports apart
 */
export async function startBroker(port, configure, host = "localhost") {
  const [adminPort, redisPort] = [await freePort(), await freePort()];
  const baseURL = `http://${host}:${port}`;
  const redis = await start("redis-server", ["--bind", "127.0.0.1", "--port", `${redisPort}`, "--save", "", "--appendonly", "no", "--dir", tmpdir()], {
    ready: /Ready to accept connections/,
  });
  let broker;
  try {
    const config = configure(baseURL);
    const file = join(await mkdtemp(join(tmpdir(), "cloakroom-")), "cloakroom.yaml");
    await writeFile(
      file,
      JSON.stringify({
        server: { listen: `127.0.0.1:${port}`, public_url: baseURL, admin_listen: `127.0.0.1:${adminPort}` },
        store: { url: `redis://127.0.0.1:${redisPort}/0` },
        frontend: { dir: join(repository, "web/demo") },
        ...config,
        session: { keys: [randomBytes(32).toString("base64")], ...config.session },
      }),
    );
    broker = await start(await cloakroom(), ["serve", "--config", file], { ready: /"msg":"listening"/ });
  } catch (err) {
    await redis.stop();
    throw err;
  }
  return {
    baseURL,
    adminURL: `http://127.0.0.1:${adminPort}`,
    output: broker.output,
    async stop() {
      await broker.stop();
      await redis.stop();
    },
  };
}

/** Waits until a condition returns a true value. @param {string} name @param {() => Promise<any>} condition @param {number} [seconds] */
export async function eventually(name, condition, seconds = 15) {
  const deadline = Date.now() + seconds * 1000;
  let last;
  for (;;) {
    try {
      const value = await condition();
      if (value) return value;
      last = value;
    } catch (err) {
      last = err;
    }
    if (Date.now() > deadline) throw new Error(`${name}: not within ${seconds} s, last: ${last}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Waits until the broker is ready, which includes the provider's metadata. */
export const ready = (broker) => eventually("the broker is ready", async () => (await fetch(`${broker.adminURL}/readyz`)).ok, 30);

/** Returns the warnings and errors in the broker's log. */
export const faults = (broker) =>
  broker
    .output()
    .split("\n")
    .filter((line) => /"level":"(ERROR|WARN)"/.test(line))
    .join("\n");

/**
 * Returns a browser with its own profile, and what a user does in it.
 *
 * @param {import("playwright-core").Browser} browser
 * @param {{ baseURL: string, output: () => string }} broker
 */
export async function visitor(browser, broker) {
  const { baseURL } = broker;
  const context = await browser.newContext({ baseURL });
  context.setDefaultTimeout(Number(process.env.PATIENCE ?? 15_000));
  // No request leaves this machine. Providers' pages load fonts from other sites.
  await context.route((url) => !/(^|\.)localhost$|^127\.0\.0\.1$/.test(url.hostname), (route) => route.abort());
  const page = await context.newPage();
  const addresses = [];
  page.on("framenavigated", (frame) => addresses.push(frame.url()));
  page.on("request", (request) => request.isNavigationRequest() && addresses.push(request.url()));
  return {
    page,
    context,
    addresses,
    /** Signs in. `atProvider` fills in the provider's pages. */
    async signIn(atProvider, query = "") {
      await page.goto(`/bff/login${query}`);
      try {
        await atProvider(page);
        await page.waitForURL((url) => url.origin === baseURL && !url.pathname.startsWith("/bff/"));
      } catch (err) {
        throw new Error(`signing in ended at ${page.url()}\n${await page.locator("body").innerText()}\n${faults(broker)}`, { cause: err });
      }
    },
    /** Sends a request as the app's script does. */
    call: (path, init) =>
      page.evaluate(
        async ([path, init]) => {
          const response = await fetch(path, { ...init, headers: { "X-CSRF": "1", Accept: "application/json", ...init?.headers } });
          const text = await response.text();
          return { status: response.status, body: text && response.headers.get("Content-Type")?.includes("json") ? JSON.parse(text) : text };
        },
        [path, init],
      ),
    async session() {
      return (await this.call("/bff/session")).body;
    },
    async signOut() {
      await page.evaluate(() => {
        const form = document.createElement("form");
        form.method = "POST";
        form.action = "/bff/logout";
        document.body.append(form);
        form.submit();
      });
    },
    close: () => context.close(),
  };
}

/** Fails unless the status is 200, and returns the body. @param {{ status: number, body: any }} response */
export function assertOK(response) {
  assert.equal(response.status, 200, JSON.stringify(response.body));
  return response.body;
}
