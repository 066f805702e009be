// Keycloak in development mode, with an H2 database. It is downloaded from Maven Central once, into the cache.
import { execFile } from "node:child_process";
import { access, mkdtemp, mkdir, readFile, rename, rm } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { freePort, repository, start } from "../e2e/process.js";

const run = promisify(execFile);
const version = "26.7.3";

/** Downloads Keycloak if necessary, and returns its path. */
async function installed() {
  const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "cloakroom");
  const path = join(cache, `keycloak-${version}`);
  if (await access(path).then(() => true, () => false)) return path;
  await mkdir(cache, { recursive: true });
  const work = await mkdtemp(join(cache, "download-"));
  try {
    await run("mvn", ["--batch-mode", "--quiet", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy", `-Dartifact=org.keycloak:keycloak-quarkus-dist:${version}:zip`, `-DoutputDirectory=${work}`, "-Dmdep.useBaseVersion=true"]);
    await run("unzip", ["-q", join(work, `keycloak-quarkus-dist-${version}.zip`), "-d", work]);
    await rename(join(work, `keycloak-${version}`), path);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return path;
}

/** Starts a server with its own database, which it keeps when it is stopped and started again. */
export async function startKeycloak() {
  const path = await installed();
  const [port, managementPort] = [await freePort(), await freePort()];
  const data = await mkdtemp(join(tmpdir(), "keycloak-"));
  const url = `http://127.0.0.1:${port}`;
  let server;
  const keycloak = {
    url,
    async start() {
      server = await start(
        join(path, "bin/kc.sh"),
        ["start-dev", "--http-host=127.0.0.1", `--http-port=${port}`, `--http-management-port=${managementPort}`, `--db-url=jdbc:h2:file:${join(data, "h2")};NON_KEYWORDS=VALUE`, "--features=dpop,spiffe"],
        { ready: /Listening on: /, env: { KC_BOOTSTRAP_ADMIN_USERNAME: "admin", KC_BOOTSTRAP_ADMIN_PASSWORD: "admin", JAVA_OPTS_APPEND: "-Xmx768m" } },
      );
    },
    async stop() {
      await server?.stop();
      server = undefined;
    },
    async remove() {
      await keycloak.stop();
      await rm(data, { recursive: true, force: true });
    },
    /** Calls the admin API. @param {string} method @param {string} where the path after /admin/realms @param {any} [body] */
    async admin(method, where, body) {
      const grant = await fetch(`${url}/realms/master/protocol/openid-connect/token`, {
        method: "POST",
        body: new URLSearchParams({ grant_type: "password", client_id: "admin-cli", username: "admin", password: "admin" }),
      });
      const { access_token: token } = await grant.json();
      const response = await fetch(`${url}/admin/realms${where}`, {
        method,
        headers: { Authorization: `Bearer ${token}`, ...(body && { "Content-Type": "application/json" }) },
        body: body && JSON.stringify(body),
      });
      const text = await response.text();
      if (!response.ok) throw new Error(`${method} ${where}: ${response.status} ${text}`);
      return text ? JSON.parse(text) : undefined;
    },
  };
  await keycloak.start();
  return keycloak;
}

/**
 * Returns the realm of configs/providers/keycloak with another URL of the app, short-lived tokens, back-channel logout and two authentication levels.
 *
 * @param {{ app: string, tokenLife: number }} options
 */
export async function realm({ app, tokenLife }) {
  const realm = JSON.parse(await readFile(join(repository, "configs/providers/keycloak/realm.json"), "utf8"));
  realm.accessTokenLifespan = tokenLife;
  const client = realm.clients[0];
  client.redirectUris = [`${app}/bff/callback`];
  Object.assign(client.attributes, {
    "post.logout.redirect.uris": `${app}/bff/logout/callback`,
    "backchannel.logout.url": `${app.replace("localhost", "127.0.0.1")}/bff/backchannel-logout`,
    "backchannel.logout.session.required": "true",
  });
  client.frontchannelLogout = false;
  realm.attributes = { ...realm.attributes, "acr.loa.map": JSON.stringify({ silver: 1, gold: 2 }) };
  const bound = structuredClone(client);
  bound.clientId = "bound";
  bound.attributes["dpop.bound.access.tokens"] = "true";
  const robot = structuredClone(client);
  Object.assign(robot, { clientId: "robot", standardFlowEnabled: false, serviceAccountsEnabled: true, redirectUris: [] });
  client.serviceAccountsEnabled = true; // for routes with token: client
  realm.clients.push(bound, robot);

  // Silver is the password. Gold is the password a second time, in place of a second factor.
  const level = (name, loa, maxAge, authenticator) => ({
    alias: name,
    providerId: "basic-flow",
    topLevel: false,
    builtIn: false,
    authenticationExecutions: [
      { authenticator: "conditional-level-of-authentication", authenticatorConfig: `${name} condition`, requirement: "REQUIRED", priority: 10 },
      { authenticator, requirement: "REQUIRED", priority: 20 },
    ],
    config: { alias: `${name} condition`, config: { "loa-condition-level": `${loa}`, "loa-max-age": `${maxAge}` } },
  });
  const levels = [level("silver", 1, 36000, "auth-username-password-form"), level("gold", 2, 36000, "auth-password-form")];
  realm.authenticatorConfig = levels.map(({ config }) => config);
  realm.authenticationFlows = [
    {
      alias: "levels",
      providerId: "basic-flow",
      topLevel: true,
      builtIn: false,
      authenticationExecutions: [
        { authenticator: "auth-cookie", requirement: "ALTERNATIVE", priority: 10 },
        { flowAlias: "forms of levels", authenticatorFlow: true, requirement: "ALTERNATIVE", priority: 20 },
      ],
    },
    {
      alias: "forms of levels",
      providerId: "basic-flow",
      topLevel: false,
      builtIn: false,
      authenticationExecutions: levels.map(({ alias }, i) => ({ flowAlias: alias, authenticatorFlow: true, requirement: "CONDITIONAL", priority: 10 * (i + 1) })),
    },
    ...levels.map(({ config, ...flow }) => flow),
  ];
  realm.browserFlow = "levels";
  return realm;
}
