// The environment of a provider in these tests: Redis, the broker, a browser, and an API that verifies tokens with oauth4webapi.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { allowInsecureRequests, discoveryRequest, processDiscoveryResponse, validateJwtAccessToken } from "oauth4webapi";

import { cloakroom, freePort, repository, start } from "../e2e/process.js";

/** @typedef {{ url: string, taken: object[], refused: string[], wantNonce: (nonce?: string) => void, close: () => void }} API */

/**
 * Starts an API. It takes a request if its access token is a JWT by RFC 9068 of the issuer for the audience, and, where it is bound to a key, if the DPoP
 * proof is right and has the nonce that is wanted.
 *
 * @param {string} issuer
 * @param {{ audience: string, requireDPoP?: boolean, validate?: Function }} options validate returns a request's claims, in the place of oauth4webapi
 * @returns {Promise<API>}
 */
export async function startAPI(issuer, { audience, requireDPoP = false, validate }) {
  const taken = [];
  const refused = [];
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
      taken.push(claims);
      res.setHeader("Content-Type", "application/json");
      res.end(JSON.stringify({ sub: claims.sub, acr: claims.acr ?? null, jkt: claims.cnf?.jkt ?? null, aud: claims.aud, scope: claims.scope, jti: claims.jti }));
    } catch (err) {
      refused.push(`${req.method} ${req.url}: ${err.message} ${err.cause ? JSON.stringify(err.cause) : ""}`);
      res.setHeader("WWW-Authenticate", 'Bearer error="invalid_token"');
      res.writeHead(401).end(err.message);
    }
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    taken,
    refused,
    wantNonce: (wanted) => (nonce = wanted),
    close: () => server.close(),
  };
}

/**
 * Starts Redis and the broker.
 *
 * @param {number} port where the broker is to listen
 * @param {(baseURL: string) => object} configure returns the configuration but for its server and store
 * @param {string} [host] another one for a second broker: cookies are for a host with all its ports
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
    said: broker.said,
    async stop() {
      await broker.stop();
      await redis.stop();
    },
  };
}

/** Waits until holds returns a true value. @param {string} what @param {() => Promise<any>} holds @param {number} [seconds] */
export async function eventually(what, holds, seconds = 15) {
  const deadline = Date.now() + seconds * 1000;
  let last;
  for (;;) {
    try {
      const value = await holds();
      if (value) return value;
      last = value;
    } catch (err) {
      last = err;
    }
    if (Date.now() > deadline) throw new Error(`${what}: not within ${seconds} s: ${last}`);
    await new Promise((again) => setTimeout(again, 100));
  }
}

/** Waits until the broker is ready, which includes the provider's metadata. */
export const ready = (broker) => eventually("the broker is ready", async () => (await fetch(`${broker.adminURL}/readyz`)).ok, 30);

/** The warnings and errors that the broker has logged. */
export const faults = (broker) =>
  broker
    .said()
    .split("\n")
    .filter((line) => /"level":"(ERROR|WARN)"/.test(line))
    .join("\n");

/**
 * A browser with its own profile, and actions in it.
 *
 * @param {import("playwright-core").Browser} browser
 * @param {{ baseURL: string, said: () => string }} broker
 */
export async function visitor(browser, broker) {
  const { baseURL } = broker;
  const context = await browser.newContext({ baseURL });
  context.setDefaultTimeout(Number(process.env.PATIENCE ?? 15_000));
  // Nothing leaves this machine: providers' pages like fonts from elsewhere.
  await context.route((url) => !/(^|\.)localhost$|^127\.0\.0\.1$/.test(url.hostname), (route) => route.abort());
  const page = await context.newPage();
  const addresses = [];
  page.on("framenavigated", (frame) => addresses.push(frame.url()));
  page.on("request", (request) => request.isNavigationRequest() && addresses.push(request.url()));
  return {
    page,
    context,
    addresses,
    /** Goes to the sign-in, where `atProvider` does what the provider's pages ask for, and comes back. */
    async signIn(atProvider, query = "") {
      await page.goto(`/bff/login${query}`);
      try {
        await atProvider(page);
        await page.waitForURL((url) => url.origin === baseURL && !url.pathname.startsWith("/bff/"));
      } catch (err) {
        throw new Error(`signing in ended at ${page.url()}\n${await page.locator("body").innerText()}\n${faults(broker)}`, { cause: err });
      }
    },
    /** Calls a path as the app does. */
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

/** @param {{ status: number, body: any }} answer */
export function assertOK(answer) {
  assert.equal(answer.status, 200, JSON.stringify(answer.body));
  return answer.body;
}
