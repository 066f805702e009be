import { mkdtemp, writeFile } from "node:fs/promises";
import { randomBytes } from "node:crypto";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { build, cloakroom, freePort, repository, start } from "./process.js";

export const tokenLife = 10; // seconds

/**
 * Starts `cloakroom serve` as in production, with a configuration file, Redis, a provider and an API.
 *
 * @param {object} [options]
 * @param {string} [options.adminToken]
 * @param {string} [options.publicURL] for a server in front of the broker; otherwise the broker's own address
 * @param {string} [options.path] at the end of the public URL
 * @param {object} [options.frontend] instead of the sample app
 * @param {object[]} [options.routes] besides those of the sample API
 * @param {string} [options.configuration] a file's text, with other routes; what depends on the test is set by environment
 * @param {object} [options.session] more settings of sessions
 */
export async function serve({ adminToken, publicURL, path = "", routes = [], configuration, session, frontend = { dir: join(repository, "web/demo") } } = {}) {
  const [port, adminPort, redisPort] = [await freePort(), await freePort(), await freePort()];
  const baseURL = `${publicURL ?? `http://localhost:${port}`}${path}`;
  const running = [];
  /** @type {Awaited<ReturnType<typeof start>>} */
  let redis;
  try {
    redis = await start("redis-server", ["--bind", "127.0.0.1", "--port", `${redisPort}`, "--save", "", "--appendonly", "no", "--dir", tmpdir()], {
      ready: /Ready to accept connections/,
    });
    running.push(redis);
    const backend = await startBackend(baseURL);
    running.push(backend);

    const file = join(await mkdtemp(join(tmpdir(), "cloakroom-")), "cloakroom.yaml");
    const settings = {
      oidc: {
        scopes: ["openid", "profile", "email", "offline_access", "orders:read"],
        authorization_parameters: { acr_values: "silver gold" },
      },
      routes: [
        { path: "/api/", upstream: backend.api, token: "user" },
        { path: "/public/", upstream: backend.api, token: "none" },
        ...routes,
      ],
    };
    await writeFile(file, configuration ?? JSON.stringify(settings)); // JSON is YAML
    const env = variables({
      server: { listen: `127.0.0.1:${port}`, public_url: baseURL, admin_listen: `127.0.0.1:${adminPort}`, admin_token: adminToken },
      oidc: { issuer: backend.issuer, client_id: backend.clientID, client_secret: backend.clientSecret },
      store: { url: `redis://127.0.0.1:${redisPort}/0` },
      session: { ...session, keys: [randomBytes(32).toString("base64")] },
      frontend,
    });
    running.push(await start(await cloakroom(), ["serve", "--config", file], { ready: /"msg":"listening"/, env }));
    await ready(`http://127.0.0.1:${adminPort}/readyz`);
  } catch (err) {
    await stop();
    throw err;
  }
  async function stop() {
    for (const program of running.reverse()) await program.stop();
  }
  return {
    baseURL,
    address: `http://127.0.0.1:${port}`,
    adminURL: `http://127.0.0.1:${adminPort}/admin/`,
    /** Stops and continues the store. @param {boolean} frozen */
    freezeStore: (frozen) => redis.signal(frozen ? "SIGSTOP" : "SIGCONT"),
    stop,
  };
}

/** Returns the environment variables for keys of the configuration. @param {Record<string, Record<string, unknown>>} sections */
function variables(sections) {
  const keys = Object.entries(sections).flatMap(([section, keys]) => Object.entries(keys).map(([key, value]) => [`${section}_${key}`, value]));
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return Object.fromEntries(keys.filter(([, value]) => value !== undefined).map(([key, value]) => [`CLOAKROOM_${key.toUpperCase()}`, text(value)]));
}

/** @type {Promise<string> | undefined} the program of the development provider */
let devidp;

/**
 * Starts the development provider and the sample API.
 *
 * @param {string} baseURL the public URL of the broker
 */
async function startBackend(baseURL) {
  devidp ??= build("./internal/devidp/cmd/devidp");
  const { match, stop } = await start(
    await devidp,
    ["--redirect-uri", `${baseURL}/bff/callback`, "--post-logout-redirect-uri", `${baseURL}/bff/logout/callback`, "--access-token-ttl", `${tokenLife}s`],
    { ready: /^(\{.*"issuer".*\})$/m },
  );
  const { issuer, client_id: clientID, client_secret: clientSecret, api } = JSON.parse(match[1]);
  return { issuer, clientID, clientSecret, api, stop };
}

/** Waits until the broker is ready. @param {string} url */
async function ready(url) {
  const deadline = Date.now() + 15_000;
  for (;;) {
    const response = await fetch(url).catch((err) => ({ ok: false, status: err.cause?.code ?? err.message }));
    if (response.ok) return;
    if (Date.now() > deadline) throw new Error(`${url}: got status ${response.status} for 15 s`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
