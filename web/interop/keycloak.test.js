// The broker with Keycloak.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { EmbeddedJWK, SignJWT, calculateJwkThumbprint, createRemoteJWKSet, exportJWK, generateKeyPair, jwtVerify } from "jose";

import { closeBrowser, launch } from "../e2e/browser.js";
import { freePort } from "../e2e/process.js";
import { assertOK, eventually, ready, serve, startAPI, startBroker, visitor } from "./broker.js";
import { realm, startKeycloak } from "./keycloak.js";

const tokenLife = 6; // seconds

/** Signs in on Keycloak's page. The password is the name. */
const as = (name) => async (page) => {
  await page.locator("#username").fill(name);
  await page.locator("#password").fill(name);
  await page.locator("#kc-login").click();
};

/** Verifies a bound token and its proof (RFC 9449, section 4.3). oauth4webapi rejects the additional member of Keycloak in cnf. */
async function validateBound(as, request, audience) {
  const [scheme, token] = request.headers.get("authorization").split(" ");
  assert.equal(scheme, "DPoP");
  const { payload: claims } = await jwtVerify(token, createRemoteJWKSet(new URL(as.jwks_uri)), { issuer: as.issuer, audience });
  const { payload: proof, protectedHeader } = await jwtVerify(request.headers.get("dpop"), EmbeddedJWK, { typ: "dpop+jwt", maxTokenAge: 60 });
  assert.equal(await calculateJwkThumbprint(protectedHeader.jwk), claims.cnf.jkt);
  assert.deepEqual([proof.htm, proof.htu, proof.ath], [request.method, request.url, createHash("sha256").update(token).digest("base64url")]);
  return claims;
}

describe("Keycloak", { timeout: 420_000 }, () => {
  let keycloak, api, boundAPI, broker, bound, browser, issuer;

  before(async () => {
    const [port, boundPort] = [await freePort(), await freePort()];
    keycloak = await startKeycloak();
    issuer = `${keycloak.url}/realms/cloakroom`;
    const imported = await realm({ app: `http://localhost:${port}`, tokenLife });
    imported.clients[1].redirectUris = [`http://bound.localhost:${boundPort}/bff/callback`];
    await keycloak.admin("POST", "", imported);
    api = await startAPI(issuer, { audience: "api" });
    boundAPI = await startAPI(issuer, { audience: "api", validate: validateBound });
    const routes = [
      { path: "/api/", upstream: api.url, token: "user" },
      { path: "/gold/", upstream: api.url, token: "user", require: { acr: ["gold"] } },
      { path: "/orders/", upstream: api.url, token: "user", accept_bearer: { audience: "api", scopes: ["orders:read"] } },
      { path: "/own/", upstream: api.url, token: "client", csrf: "fetch-metadata" },
    ];
    const oidc = { issuer, client_secret: imported.clients[0].secret, scopes: ["openid", "profile", "email"] };
    broker = await startBroker(port, () => ({ oidc: { ...oidc, client_id: "spa" }, routes }));
    bound = await startBroker(boundPort, () => ({ oidc: { ...oidc, client_id: "bound", sender_constraint: "dpop" }, routes: [{ path: "/api/", upstream: boundAPI.url, token: "user" }] }), "bound.localhost");
    await ready(broker);
    await ready(bound);
    browser = await launch();
  });
  after(async () => {
    await closeBrowser(browser, "Keycloak");
    await broker?.stop();
    await bound?.stop();
    api?.close();
    boundAPI?.close();
    await keycloak?.remove();
  });

  test("sign in with a pushed request, call the API", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"), "?return_to=/coats");
    assert.equal(new URL(alice.page.url()).pathname, "/coats");
    const { user } = await alice.session();
    assert.equal(user.preferred_username, "alice");
    assert.equal(assertOK(await alice.call("/api/x")).sub, user.sub);
    const authorization = alice.addresses.find((address) => address.startsWith(`${issuer}/protocol/openid-connect/auth`));
    assert.deepEqual([...new URL(authorization).searchParams.keys()].sort(), ["client_id", "request_uri"]);
    await alice.close();
  });

  test("tokens are refreshed with rotation and reuse detection on", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"));
    const tokens = new Set();
    for (const until = Date.now() + 2.5 * tokenLife * 1000; Date.now() < until; ) {
      const responses = await Promise.all([...Array(10).keys()].map(() => alice.call("/api/x")));
      for (const response of responses) tokens.add(assertOK(response).jti);
      await new Promise((resolve) => setTimeout(resolve, 300));
    }
    assert.ok(tokens.size >= 3, `got ${tokens.size} tokens in 2.5 lifetimes, want 3 or more`);
    await alice.close();
  });

  test("ending a session in Keycloak's admin API ends only that session", async () => {
    const [alice, phone] = [await visitor(browser, broker), await visitor(browser, broker)];
    await alice.signIn(as("alice"));
    const { user } = await alice.session();
    const ids = async () => (await keycloak.admin("GET", `/cloakroom/users/${user.sub}/sessions`)).map(({ id }) => id);
    const before = await ids();
    await phone.signIn(as("alice"));
    const [id, ...more] = (await ids()).filter((id) => !before.includes(id));
    assert.deepEqual(more, [], "the phone has one session");
    await keycloak.admin("DELETE", `/cloakroom/sessions/${id}`);
    await eventually("the phone is signed out", async () => !(await phone.session()).authenticated, 5);
    assert.equal((await phone.call("/api/x")).status, 401);
    assertOK(await alice.call("/api/x"));
    await keycloak.admin("POST", `/cloakroom/users/${user.sub}/logout`);
    await eventually("alice is signed out everywhere", async () => !(await alice.session()).authenticated, 5);
    await alice.close();
    await phone.close();
  });

  test("step-up to a higher acr and back; aborting keeps the session", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"), "?acr_values=silver");
    assert.equal((await alice.session()).user.acr, "silver");
    const rejected = await alice.call("/gold/x");
    assert.deepEqual([rejected.status, rejected.body.code], [401, "insufficient_user_authentication"]);
    const before = (await alice.session()).session.id;

    const stepUp = () =>
      alice.page.evaluate(async () => {
        const { createClient } = await import("/bff/client.js");
        const client = createClient();
        client.stepUp(await client.fetch("/gold/x"));
      });
    await alice.page.goto("/shop?shelf=2");
    await stepUp();
    await alice.page.locator("#password").waitFor();
    assert.equal(await alice.page.locator("input#username:not([type=hidden])").count(), 0); // Keycloak knows the user
    await alice.page.goto("/shop?shelf=2"); // alice cancels
    assert.equal((await alice.session()).session.id, before);
    assertOK(await alice.call("/api/x"));

    await stepUp();
    await alice.page.locator("#password").fill("alice");
    await alice.page.locator("#kc-login").click();
    await alice.page.waitForURL(`${broker.baseURL}/shop?shelf=2`);
    assert.equal((await alice.session()).user.acr, "gold");
    assertOK(await alice.call("/gold/x"));
    await alice.close();
  });

  test("DPoP-bound tokens reach the API with a proof", async () => {
    const alice = await visitor(browser, bound);
    await alice.signIn(as("alice"));
    const first = assertOK(await alice.call("/api/x"));
    assert.match(first.jkt, /^[\w-]{43}$/);
    await alice.call("/bff/session/refresh", { method: "POST" });
    const second = assertOK(await alice.call("/api/x"));
    assert.notEqual(second.jti, first.jti);
    assert.equal(second.jkt, first.jkt);
    await alice.close();
  });

  test("bearer tokens of machines, client credentials of the broker", async () => {
    const tokenFor = async (scope) => {
      const body = new URLSearchParams({ grant_type: "client_credentials", client_id: "robot", client_secret: "demonstration-only", scope });
      const { access_token: token } = await (await fetch(`${issuer}/protocol/openid-connect/token`, { method: "POST", body })).json();
      return token;
    };
    const call = (token) => fetch(`${broker.baseURL}/orders/7`, { headers: { Authorization: `Bearer ${token}` } });
    const response = await call(await tokenFor("orders:read"));
    assert.equal(response.status, 200, await response.clone().text());
    const machine = await response.json();
    assert.deepEqual([machine.aud, machine.scope.split(" ").includes("orders:read")], ["api", true]);
    assert.equal((await call(await tokenFor("email"))).status, 403);
    assert.equal((await call(`${await tokenFor("orders:read")}x`)).status, 401);

    const alice = await visitor(browser, broker);
    await alice.page.goto("/");
    const own = assertOK(await alice.call("/own/x"));
    assert.notEqual(own.sub, machine.sub);
    assert.equal(assertOK(await alice.call("/own/x")).jti, own.jti);
    assert.deepEqual(await alice.session(), { authenticated: false });
    await alice.close();
  });

  // What Kubernetes and SPIRE issue to a workload, in a file.
  for (const { type, id, sub, use, providerId, config } of [
    {
      type: "jwt-bearer",
      id: "workload",
      sub: "system:serviceaccount:shop:cloakroom",
      providerId: "oidc",
      config: (keys) => ({ issuer: "https://cluster.example", jwksUrl: keys, useJwksUrl: "true", validateSignature: "true", clientId: "x", clientSecret: "x", tokenUrl: keys, authorizationUrl: keys, supportsClientAssertions: "true", supportsClientAssertionReuse: "true" }),
    },
    { type: "jwt-spiffe", id: "svid", sub: "spiffe://shop.example/cloakroom", use: "jwt-svid", providerId: "spiffe", config: (keys) => ({ trustDomain: "spiffe://shop.example", bundleEndpoint: keys }) },
  ]) {
    test(`the client authenticates with a JWT of another issuer: ${type}`, async () => {
      const { publicKey, privateKey } = await generateKeyPair("RS256");
      const keys = await serve(JSON.stringify({ keys: [{ ...(await exportJWK(publicKey)), kid: "1", alg: "RS256", use: use ?? "sig" }] }));
      const file = join(await mkdtemp(join(tmpdir(), "workload-")), "token");
      const token = await new SignJWT().setProtectedHeader({ alg: "RS256", kid: "1" }).setIssuer("https://cluster.example").setSubject(sub).setAudience(issuer).setIssuedAt().setJti(type).setExpirationTime("5m").sign(privateKey);
      await writeFile(file, `${token}\n`);
      const port = await freePort();
      await keycloak.admin("POST", "/cloakroom/identity-provider/instances", { alias: type, providerId, enabled: true, hideOnLogin: true, config: config(keys.url) });
      const [spa] = await keycloak.admin("GET", "/cloakroom/clients?clientId=spa");
      const { id: _, secret, clientId, protocolMappers, ...client } = spa;
      await keycloak.admin("POST", "/cloakroom/clients", {
        ...client,
        clientId: id,
        clientAuthenticatorType: "federated-jwt",
        redirectUris: [`http://localhost:${port}/bff/callback`],
        attributes: { ...client.attributes, "jwt.credential.issuer": type, "jwt.credential.sub": sub },
      });
      const oidc = { issuer, client_id: id, client_auth: "jwt_file", client_assertion_file: file, client_assertion_type: type, scopes: ["openid", "profile", "email"] };
      const broker = await startBroker(port, () => ({ oidc, routes: [{ path: "/api/", upstream: api.url, token: "user" }] }));
      try {
        await ready(broker);
        const alice = await visitor(browser, broker);
        await alice.signIn(as("alice"));
        assertOK(await alice.call("/bff/session/refresh", { method: "POST" }));
        assert.equal((await alice.session()).user.preferred_username, "alice");
        await alice.signOut();
        await alice.close();
      } finally {
        await broker.stop();
        keys.close();
      }
    });
  }

  test("a new login in another app of the realm keeps the session", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"));
    const { user } = await alice.session();
    await new Promise((resolve) => setTimeout(resolve, 1500));
    await alice.page.goto(`${bound.baseURL}/bff/login?prompt=login&return_to=/other`);
    await alice.page.locator("#password").fill("alice");
    await alice.page.locator("#kc-login").click();
    await alice.page.waitForURL(`${bound.baseURL}/other`);
    await alice.page.goto(`${broker.baseURL}/`);
    assertOK(await alice.call("/bff/session/refresh", { method: "POST" }));
    assert.equal((await alice.session()).user.auth_time, user.auth_time);
    await alice.close();
  });

  test("signing keys rotate during a session", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"));
    await keycloak.admin("POST", "/cloakroom/components", {
      name: "new key",
      providerId: "rsa-generated",
      providerType: "org.keycloak.keys.KeyProvider",
      config: { priority: ["200"], enabled: ["true"], active: ["true"], algorithm: ["RS256"], keySize: ["2048"] },
    });
    assertOK(await alice.call("/bff/session/refresh", { method: "POST" }));
    assert.equal((await alice.session()).authenticated, true);
    const bob = await visitor(browser, broker);
    await bob.signIn(as("bob"));
    assert.equal((await bob.session()).user.preferred_username, "bob");
    await alice.close();
    await bob.close();
  });

  test("silent login succeeds only with a session at Keycloak", async () => {
    const alice = await visitor(browser, broker);
    await alice.page.goto("/");
    const silently = () =>
      alice.page.evaluate(async () => {
        const { createClient } = await import("/bff/client.js");
        return createClient().silentLogin();
      });
    assert.equal(await silently(), false);
    await alice.signIn(as("alice"));
    await alice.context.clearCookies({ domain: "localhost" });
    await alice.page.goto("/");
    assert.equal((await alice.session()).authenticated, false);
    assert.equal(typeof (await silently()), "boolean"); // the browser decides whether Keycloak gets its cookie in a frame
    await alice.close();
  });

  test("Keycloak restarts during a session", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"));
    const { session } = await alice.session();
    await keycloak.stop();
    await eventually("the token has expired", async () => (await alice.call("/api/x")).status === 503, 2 * tokenLife);
    assert.equal((await alice.session()).authenticated, true);
    await keycloak.start();
    await eventually("calls succeed again", async () => (await alice.call("/api/x")).status === 200, 40);
    assert.equal((await alice.session()).session.id, session.id);
    await alice.close();
  });

  test("signing out ends the session at Keycloak", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"), "?return_to=/coats");
    await alice.signOut();
    await alice.page.waitForURL(`${broker.baseURL}/`);
    assert.deepEqual(await alice.session(), { authenticated: false });
    await alice.page.goto("/bff/login");
    await alice.page.locator("#username").waitFor(); // Keycloak has no session of hers
    await alice.close();
  });
});
