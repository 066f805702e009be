// The broker with panva's oidc-provider.
import assert from "node:assert/strict";
import { generateKeyPairSync } from "node:crypto";
import { after, before, describe, test } from "node:test";

import { closeBrowser, launch } from "../e2e/browser.js";
import { freePort } from "../e2e/process.js";
import { assertOK, eventually, ready, startAPI, startBroker, visitor } from "./broker.js";
import { startProvider } from "./oidc-provider.js";

const clientKey = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ type: "pkcs8", format: "pem" });

/** Signs in on the provider's development pages. */
const as = (name) => async (page) => {
  await page.locator('input[name="login"]').fill(name);
  await page.locator('input[name="password"]').fill("any");
  await page.locator("button[type=submit]").click();
  await page.getByRole("button", { name: "Continue" }).click(); // consent
};

describe("oidc-provider, FAPI 2.0", { timeout: 180_000 }, () => {
  let provider, orders, billing, broker, browser;

  before(async () => {
    const [port, providerPort] = [await freePort(), await freePort()];
    provider = await startProvider({ port: providerPort, app: `http://localhost:${port}` });
    orders = await startAPI(provider.issuer, { audience: "https://orders.example", requireDPoP: true });
    billing = await startAPI(provider.issuer, { audience: "https://billing.example", requireDPoP: true });
    broker = await startBroker(port, () => ({
      oidc: {
        issuer: provider.issuer,
        client_id: "spa",
        client_auth: "private_key_jwt",
        client_key: clientKey,
        profile: "fapi2",
        sign_requests: true,
        scopes: ["openid", "offline_access", "api:read"],
        resource: ["https://orders.example"],
        authorization_parameters: { prompt: "consent" }, // otherwise oidc-provider drops offline_access
      },
      routes: [
        { path: "/orders/", upstream: orders.url, token: "user" },
        { path: "/billing/", upstream: billing.url, token: "user", resource: "https://billing.example" },
      ],
    }));
    await ready(broker);
    browser = await launch();
  });
  after(async () => {
    await closeBrowser(browser, "oidc-provider");
    await broker?.stop();
    orders?.close();
    billing?.close();
    await provider?.stop();
  });

  // Events of a correct client: the first proof has no nonce, and this provider cannot revoke a JWT.
  const expected = /use_dpop_nonce|unsupported_token_type|^grant.revoked/;

  /** Fails if the provider or an API reported an error. */
  const clean = () => {
    assert.deepEqual(provider.events.filter((event) => !expected.test(event)), []);
    assert.deepEqual([...orders.rejected, ...billing.rejected], []);
  };

  test("sign in; each API gets its own token, bound to one key", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"));
    assert.equal((await alice.session()).user.sub, "alice");
    const one = assertOK(await alice.call("/orders/1"));
    const two = assertOK(await alice.call("/billing/1"));
    assert.deepEqual([one.sub, one.aud, two.sub, two.aud], ["alice", "https://orders.example", "alice", "https://billing.example"]);
    assert.equal(one.jkt, two.jkt);
    const authorization = alice.addresses.find((address) => address.startsWith(`${provider.issuer}/auth?`));
    assert.deepEqual([...new URL(authorization).searchParams.keys()].sort(), ["client_id", "request_uri"]);
    await alice.close();
    clean();
  });

  test("refresh tokens rotate and are used once, with parallel calls", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"));
    const first = assertOK(await alice.call("/orders/1"));
    const before = provider.refreshes();
    for (const _ of [1, 2, 3]) assertOK(await alice.call("/bff/session/refresh", { method: "POST" }));
    const responses = await Promise.all([...Array(20).keys()].map((n) => alice.call(n % 2 ? "/orders/1" : "/billing/1")));
    for (const response of responses) assertOK(response);
    assert.notEqual(responses[1].body.jti, first.jti);
    assert.equal(responses[1].body.jkt, first.jkt);
    assert.equal(provider.refreshes() - before, 4, "three refreshes, and one for the second API");
    await alice.close();
    clean();
  });

  test("an API requires its own DPoP nonce", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"));
    orders.wantNonce("orders-1");
    assertOK(await alice.call("/orders/1", { method: "POST", body: "x" }));
    orders.wantNonce("orders-2");
    assertOK(await alice.call("/orders/1"));
    assertOK(await alice.call("/billing/1"));
    orders.wantNonce(undefined);
    await alice.close();
    clean();
  });

  test("signing out ends the provider's session and revokes tokens", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"), "?return_to=/coats");
    await alice.signOut();
    await alice.page.getByRole("button", { name: /yes, sign me out/i }).click();
    await alice.page.waitForURL(`${broker.baseURL}/`);
    assert.deepEqual(await alice.session(), { authenticated: false });
    await alice.page.goto("/bff/login");
    await alice.page.locator('input[name="login"]').waitFor(); // the provider has no session of hers
    await alice.close();
    clean();
  });

  test("back-channel logout ends the session", async () => {
    const alice = await visitor(browser, broker);
    await alice.signIn(as("alice"));
    const bob = await visitor(browser, broker);
    await bob.signIn(as("bob"));
    const elsewhere = await alice.context.newPage();
    await elsewhere.goto(`${provider.issuer}/session/end`);
    await elsewhere.getByRole("button", { name: /yes, sign me out/i }).click();
    await eventually("alice is signed out", async () => (await alice.session()).authenticated === false);
    assert.equal((await alice.call("/orders/1")).status, 401);
    assertOK(await bob.call("/orders/1"));
    await alice.close();
    await bob.close();
    clean();
  });

  test("silent login succeeds only with a session at the provider", async () => {
    const alice = await visitor(browser, broker);
    const errors = [];
    alice.page.on("console", (message) => message.type() === "error" && message.location().url.startsWith(broker.baseURL) && errors.push(`${message.text()} (${message.location().url})`));
    await alice.page.goto("/");
    const silently = () =>
      alice.page.evaluate(async () => {
        const { createClient } = await import("/bff/client.js");
        const client = createClient();
        const events = [];
        client.on("signed-in", ({ user }) => events.push(user.sub));
        return [await client.silentLogin(), events, document.querySelectorAll("iframe").length];
      });
    assert.deepEqual(await silently(), [false, [], 0]);
    await alice.signIn(as("alice"));
    const cookies = await alice.context.cookies(broker.baseURL);
    await alice.page.goto("about:blank"); // the app may be opening its event stream, which would be refused without the cookie
    await alice.context.clearCookies({ name: cookies.find(({ name }) => name === `cloakroom-${new URL(broker.baseURL).port}`).name });
    await alice.page.goto("/");
    assert.equal((await alice.session()).authenticated, false);
    assert.deepEqual(await silently(), [true, ["alice"], 0]);
    assertOK(await alice.call("/orders/1"));
    assert.deepEqual(errors, []);
    await alice.close();
    provider.events.length = 0; // login_required is one of them
  });

  test("rejected consent shows an error and starts no session", async () => {
    const alice = await visitor(browser, broker);
    await alice.page.goto("/bff/login");
    await alice.page.getByRole("link", { name: /cancel/i }).click();
    await alice.page.getByText("You did not sign in").waitFor();
    await alice.page.getByRole("link", { name: "Back to the app" }).click();
    assert.deepEqual(await alice.session(), { authenticated: false });
    await alice.close();
    provider.events.length = 0; // access_denied is one of them
  });

  test("only the first proof was sent without a nonce", () => {
    assert.equal(provider.nonces(), 1);
  });
});
