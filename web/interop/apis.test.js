// The APIs of docs/apis. All have to respond in the same way to the same tokens.
import assert from "node:assert/strict";
import { constants, createHmac, generateKeyPairSync, sign } from "node:crypto";
import { once } from "node:events";
import { access, readFile } from "node:fs/promises";
import { createServer, request } from "node:http";
import { homedir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { build, freePort, repository, start } from "../e2e/process.js";

const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "cloakroom/apis"); // where make apis-setup installs them
const apis = join(repository, "docs/apis");
const audience = "orders";

/** The programs, each with its command and arguments. */
const programs = {
  go: async () => [await build("./docs/apis/go"), []],
  node: async () => ["node", [await installed(join(apis, "node/orders.js"), join(apis, "node/node_modules/jose"))]],
  python: async () => [await installed(join(cache, "python/bin/python")), [join(apis, "python/orders.py")]],
  java: async () => ["java", ["-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", join(await installed(join(cache, "java")), "*"), join(apis, "java/Orders.java")]],
};

async function installed(path, also = path) {
  await access(also).catch(() => assert.fail(`${also} is missing: run make apis-setup`));
  return path;
}

// Keys

const key = (kid, type, options, published = {}) => {
  const { privateKey, publicKey } = generateKeyPairSync(type, options);
  return { kid, privateKey, publicKey, jwk: { ...publicKey.export({ format: "jwk" }), kid, use: "sig", ...published } };
};
const rsa = (kid, published, bits = 2048) => key(kid, "rsa", { modulusLength: bits }, published);
const keys = {
  rs: rsa("rs", { alg: "RS256" }),
  ps: rsa("ps", { alg: "PS256" }),
  es: key("es", "ec", { namedCurve: "P-256" }, { alg: "ES256" }),
  ed: key("ed", "ed25519", {}, { alg: "EdDSA" }),
  any: rsa("any"),
  encryption: rsa("encryption", { alg: undefined, use: "enc" }),
  small: rsa("small", { alg: "RS256" }, 1024),
};
const stranger = rsa("rs", { alg: "RS256" });
const successor = key("successor", "ec", { namedCurve: "P-256" }, { alg: "ES256" });

// Tokens

const base64url = (value) => Buffer.from(typeof value === "string" || Buffer.isBuffer(value) ? value : JSON.stringify(value)).toString("base64url");

const signers = {
  RS256: (data, { privateKey }) => sign("sha256", data, privateKey),
  PS256: (data, { privateKey }) => sign("sha256", data, { key: privateKey, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 }),
  ES256: (data, { privateKey }) => sign("sha256", data, { key: privateKey, dsaEncoding: "ieee-p1363" }),
  DER: (data, { privateKey }) => sign("sha256", data, { key: privateKey, dsaEncoding: "der" }),
  EdDSA: (data, { privateKey }) => sign(null, data, privateKey),
  HS256: (data, { publicKey }) => createHmac("sha256", publicKey.export({ type: "spki", format: "pem" })).update(data).digest(),
  none: () => Buffer.alloc(0),
};

const now = () => Math.floor(Date.now() / 1000);

/** Returns an access token (RFC 9068) with some parts replaced. Members that are undefined are omitted. */
function token(issuer, { claims = {}, header = {}, key = keys.rs, signer = key.jwk.alg ?? "RS256", written = JSON.stringify } = {}) {
  const iat = now();
  const head = { alg: signer, typ: "at+jwt", kid: key.kid, ...header };
  const body = { iss: issuer.url, aud: audience, sub: "alice", client_id: "spa", jti: `${Math.random()}`, iat, exp: iat + 300, scope: "openid orders:read", ...claims };
  const data = `${base64url(head)}.${base64url(written(body))}`;
  return `${data}.${base64url(signers[signer](data, key))}`;
}

/** Makes a row's request: a token in the Authorization header, with some parts replaced. */
const bearing = (edits) => (issuer) => ({ authorization: [`Bearer ${token(issuer, typeof edits === "function" ? edits(issuer) : edits)}`] });
const claims = (edits) => bearing({ claims: edits });
const header = (edits) => bearing({ header: edits });
const changed = (change) => (issuer) => ({ authorization: [`Bearer ${change(token(issuer))}`] });

const good = { status: 200 };
const noToken = { status: 401 };
const twice = { status: 400, error: "invalid_request" };
const bad = { status: 401, error: "invalid_token" };
const tooLittle = { status: 403, error: "insufficient_scope", scope: "orders:read" };

// The request, the expected response, and the responses of APIs that differ: docs/apis.md explains them.
const table = [
  ["a token by RS256", bearing({}), good],
  ["a token by PS256", bearing({ key: keys.ps }), good],
  ["a token by ES256", bearing({ key: keys.es }), good],
  ["a token by EdDSA", bearing({ key: keys.ed }), good],
  ["a token by RS256 of a key without alg", bearing({ key: keys.any }), good],
  ["a token by PS256 of a key without alg", bearing({ key: keys.any, signer: "PS256" }), good, { python: bad }],
  ["a token without kid, for whose alg there is one key", bearing({ key: keys.ed, header: { kid: undefined } }), good, { python: bad }],
  ["alg Ed25519", bearing({ key: keys.ed, header: { alg: "Ed25519" } }), bad, { go: good }],
  ["a claim that occurs twice", bearing({ written: (body) => JSON.stringify(body).replace("{", '{"aud":"billing",') }), good, { go: bad, java: bad }],

  ["no token", () => ({ authorization: [] }), noToken],
  ["another scheme", () => ({ authorization: ["Basic YWxpY2U6cHc="] }), noToken],
  ["a scheme that begins alike", (issuer) => ({ authorization: [`BearerX ${token(issuer)}`] }), noToken],
  ["a token in the query", (issuer) => ({ authorization: [], query: `?access_token=${token(issuer)}` }), noToken],
  ["a token in the query and one in the header", (issuer) => ({ authorization: [`Bearer ${token(issuer)}`], query: `?a&access%5Ftoken=${token(issuer)}` }), twice],
  ["two Authorization headers", (issuer) => ({ authorization: [`Bearer ${token(issuer)}`, `Bearer ${token(issuer)}`] }), twice],
  ["two Authorization headers of which one is another scheme's", (issuer) => ({ authorization: [`Bearer ${token(issuer)}`, "Basic YWxpY2U6cHc="] }), twice],
  ["a scheme without a token", () => ({ authorization: ["Bearer"] }), twice],
  ["something behind the token", (issuer) => ({ authorization: [`Bearer ${token(issuer)} x`] }), twice],
  ["two tokens with a comma", (issuer) => ({ authorization: [`Bearer ${token(issuer)},Bearer ${token(issuer)}`] }), twice],
  ["a scheme in lower case", (issuer) => ({ authorization: [`bearer ${token(issuer)}`] }), good],
  ["a scheme in upper case, and two spaces", (issuer) => ({ authorization: [`BEARER  ${token(issuer)}`] }), good],

  ["exp 10 s ago", bearing(() => ({ claims: { iat: now() - 300, exp: now() - 10 } })), good],
  ["exp 60 s ago", bearing(() => ({ claims: { iat: now() - 300, exp: now() - 60 } })), bad],
  ["no exp", claims({ exp: undefined }), bad],
  ["exp as a string", claims({ exp: "32503680000" }), bad],
  ["nbf 10 s ahead", bearing(() => ({ claims: { nbf: now() + 10 } })), good],
  ["nbf 60 s ahead", bearing(() => ({ claims: { nbf: now() + 60 } })), bad],
  ["nbf as a string", claims({ nbf: "1" }), bad],
  ["iat 10 s ahead", bearing(() => ({ claims: { iat: now() + 10 } })), good],
  ["iat 60 s ahead", bearing(() => ({ claims: { iat: now() + 60 } })), bad],
  ["iat a year ago", bearing(() => ({ claims: { iat: now() - 365 * 86400 } })), good],
  ["no iat", claims({ iat: undefined }), bad],
  ["no sub", claims({ sub: undefined }), bad],
  ["an empty sub", claims({ sub: "" }), bad],
  ["a number as sub", claims({ sub: 7 }), bad],
  ["no client_id", claims({ client_id: undefined }), bad],
  ["an empty client_id", claims({ client_id: "" }), bad],
  ["a number as client_id", claims({ client_id: 7 }), bad],
  ["no jti", claims({ jti: undefined }), bad],
  ["an empty jti", claims({ jti: "" }), bad],
  ["a number as jti", claims({ jti: 7 }), bad],
  ["iss of another issuer", claims({ iss: "https://id.example" }), bad],
  ["iss with a slash at the end", bearing((issuer) => ({ claims: { iss: `${issuer.url}/` } })), bad],
  ["no iss", claims({ iss: undefined }), bad],
  ["several iss", bearing((issuer) => ({ claims: { iss: [issuer.url] } })), bad],
  ["aud of another API", claims({ aud: "billing" }), bad],
  ["aud that begins with this API", claims({ aud: "orders-admin" }), bad],
  ["aud that this API begins with", claims({ aud: "order" }), bad],
  ["aud in another case", claims({ aud: "Orders" }), bad],
  ["aud with this API among others", claims({ aud: ["billing", "orders"] }), good],
  ["aud of several others", claims({ aud: ["billing", "orders-admin"] }), bad],
  ["an empty aud", claims({ aud: [] }), bad],
  ["no aud", claims({ aud: undefined }), bad],
  ["bound to a DPoP key", claims({ cnf: { jkt: "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I" } }), bad],
  ["bound to a certificate", claims({ cnf: { "x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2" } }), bad],
  ["bound to something unknown", claims({ cnf: {} }), bad],

  ["no scope", claims({ scope: undefined }), tooLittle],
  ["an empty scope", claims({ scope: "" }), tooLittle],
  ["a scope that begins with the one needed", claims({ scope: "orders:readwrite" }), tooLittle],
  ["a scope that ends with the one needed", claims({ scope: "myorders:read" }), tooLittle],
  ["a scope in another case", claims({ scope: "Orders:Read" }), tooLittle],
  ["a scope behind a tab", claims({ scope: "openid\torders:read" }), tooLittle],
  ["the scope alone", claims({ scope: "orders:read" }), good],
  ["scope as an array", claims({ scope: ["openid", "orders:read"] }), good],
  ["scope as an array without it", claims({ scope: ["openid"] }), tooLittle],
  ["scope as an array with a number", claims({ scope: ["orders:read", 7] }), bad],

  ["typ JWT", header({ typ: "JWT" }), bad],
  ["no typ", header({ typ: undefined }), bad],
  ["a number as typ", header({ typ: 7 }), bad],
  ["typ logout+jwt", header({ typ: "logout+jwt" }), bad],
  ["typ application/at+jwt", header({ typ: "application/at+jwt" }), good],
  ["typ AT+JWT", header({ typ: "AT+JWT" }), good],
  ["an ID token", bearing({ header: { typ: "JWT" }, claims: { nonce: "n", at_hash: "x", scope: undefined, client_id: undefined, jti: undefined } }), bad],

  ["alg none", bearing({ signer: "none" }), bad],
  ["alg nOnE", bearing({ signer: "none", header: { alg: "nOnE" } }), bad],
  ["alg none with a signature", header({ alg: "none" }), bad],
  ["no alg", header({ alg: undefined }), bad],
  ["alg in lower case", header({ alg: "rs256" }), bad],
  ["HS256 with the public key as the secret", bearing({ signer: "HS256" }), bad],
  ["alg ES256 for an RSA key", header({ alg: "ES256" }), bad],
  ["alg RS256 for an EC key", bearing({ key: keys.es, header: { alg: "RS256" } }), bad],
  ["RS256 with a key for PS256", bearing({ key: keys.ps, signer: "RS256" }), bad],
  ["RS512, which is not listed", bearing({ key: keys.any, header: { alg: "RS512" } }), bad],
  ["a key for encryption", bearing({ key: keys.encryption }), bad],
  ["a key of 1024 bits", bearing({ key: keys.small }), bad],
  ["an ECDSA signature in DER", bearing({ key: keys.es, signer: "DER", header: { alg: "ES256" } }), bad],
  ["a signature of zeros", (issuer) => ({ authorization: [`Bearer ${token(issuer, { key: keys.es }).replace(/[^.]+$/, base64url(Buffer.alloc(64)))}`] }), bad],
  ["the signature of another key", bearing({ key: stranger }), bad],
  ["a kid of no key", header({ kid: "unknown-kid" }), bad],
  ["a kid that is a path", header({ kid: "../../../../dev/null" }), bad],
  ["a number as kid", header({ kid: 7 }), bad],
  ["the key in the header", bearing({ key: stranger, header: { kid: undefined, jwk: stranger.jwk } }), bad],
  ["the key in the header, with a kid of the issuer's", bearing({ key: stranger, header: { jwk: stranger.jwk } }), bad],
  ["jku and x5u of an attacker", bearing(() => ({ key: stranger, header: { jku: `${attacker.url}/jwks`, x5u: `${attacker.url}/x5u` } })), bad],
  ["jku of an attacker, and no kid", bearing(() => ({ key: stranger, header: { kid: undefined, jku: `${attacker.url}/jwks`, x5u: `${attacker.url}/x5u` } })), bad],
  ["another issuer's token", () => ({ authorization: [`Bearer ${token(attacker, { key: stranger })}`] }), bad],
  ["crit of an unknown extension", header({ crit: ["exp"], exp: 1 }), bad],
  ["crit of b64", header({ crit: ["b64"], b64: true }), bad],
  ["b64 without crit", header({ b64: true }), bad],
  ["b64 that is false", header({ b64: false }), bad],
  ["zip", header({ zip: "DEF" }), bad],

  ["no JWT", changed(() => "opaque"), bad],
  ["four dots, as a JWE has", changed((t) => `${t}.x.y`), bad],
  ["no signature", changed((t) => t.replace(/[^.]+$/, "")), bad],
  ["no payload", changed((t) => t.replace(/\..+\./, "..")), bad],
  ["padding", changed((t) => `${t}==`), bad],
  ["another payload", changed((t) => t.replace(/\..+\./, `.${base64url({ sub: "mallory" })}.`)), bad],
  ["a header that is no JSON", changed((t) => t.replace(/^[^.]+/, base64url("alg: RS256"))), bad],
  ["a header that is an array", changed((t) => t.replace(/^[^.]+/, base64url([]))), bad],
  ["a header that is no UTF-8", changed((t) => t.replace(/^[^.]+/, base64url(Buffer.from([0x7b, 0xff, 0x7d])))), bad],
  ["a header of brackets", changed((t) => t.replace(/^[^.]+/, base64url("[".repeat(5000)))), bad],
  [
    "JSON serialization",
    changed((t) => {
      const [protected_, payload, signature] = t.split(".");
      return JSON.stringify({ payload, signatures: [{ protected: protected_, signature }] });
    }),
    twice, // it has characters that a bearer token cannot have
  ],
];

// Servers

const metadata = "/.well-known/openid-configuration";

/** Creates an issuer. It counts its requests by path, and `instead` replaces responses. */
async function startIssuer({ port, published = Object.values(keys) } = {}) {
  port ??= await freePort();
  const issuer = { url: `http://127.0.0.1:${port}`, published, requests: { [metadata]: 0, "/jwks": 0 }, instead: {}, up, down };
  const server = createServer((request, response) => {
    issuer.requests[request.url] = (issuer.requests[request.url] ?? 0) + 1;
    const responses = {
      [metadata]: () => ({ status: 200, body: { issuer: issuer.url, jwks_uri: `${issuer.url}/jwks` } }),
      "/jwks": () => ({ status: 200, body: { keys: [{ kty: "XYZ", kid: "unknown" }, ...issuer.published.map(({ jwk }) => jwk)] } }),
    };
    const { status, headers = {}, body = {} } = issuer.instead[request.url] ?? responses[request.url]?.() ?? { status: 404 };
    response.writeHead(status, { "Content-Type": "application/json", ...headers }).end(JSON.stringify(body));
  });
  async function up() {
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
    return issuer;
  }
  async function down() {
    if (!server.listening) return;
    server.close();
    server.closeAllConnections();
    await once(server, "close");
  }
  return issuer;
}

async function startAPI([command, args], issuer) {
  const program = await start(command, args, { ready: /listening on (?:\S+:)?(\d+)/, env: { PORT: "0", ISSUER: issuer.url, AUDIENCE: audience } });
  return { port: program.match[1], stop: program.stop };
}

/** Sends GET /orders with several Authorization headers, which fetch would join. */
async function send(api, { authorization, query = "" }) {
  const sent = request({
    host: "127.0.0.1",
    port: api.port,
    path: `/orders${query}`,
    headers: ["Host", "orders.example", ...authorization.flatMap((value) => ["Authorization", value])],
    agent: false,
    signal: AbortSignal.timeout(15_000),
  }).end();
  const [response] = await once(sent, "response");
  let body = "";
  for await (const text of response.setEncoding("utf8")) body += text;
  return { status: response.statusCode, headers: response.headers, challenges: response.headersDistinct["www-authenticate"] ?? [], raw: response.rawHeaders.join("\n") + body, body };
}

/** Fails unless a response is as expected and as RFC 6750, section 3 requires, without any part of the token. */
function assertResponse(response, { status, error, scope }, { authorization, query = "" }) {
  const challenge = parseChallenge(response.challenges);
  assert.deepEqual({ status: response.status, error: challenge?.error, scope: challenge?.scope }, { status, error, scope });
  assert.equal(response.headers["cache-control"], "no-store");
  assert.equal(challenge !== undefined, status !== 200 && status !== 503);
  assert.equal("retry-after" in response.headers, status === 503);
  if (status === 200) return assert.deepEqual(JSON.parse(response.body), { sub: "alice", orders: [] });
  if (!error) assert.deepEqual(Object.keys(challenge ?? {}), []);
  for (const part of `${authorization} ${query}`.split(/[^\w-]+/).filter((part) => part.length > 12 && part !== "access_token")) assert.ok(!response.raw.includes(part), `the response contains ${part}`);
  assert.doesNotMatch(response.raw, /alice|mallory|spa\b/);
}

/** Returns the parameters of the only challenge, for Bearer. */
function parseChallenge(challenges) {
  assert.ok(challenges.length <= 1, "got more than one challenge");
  if (challenges.length === 0) return undefined;
  const parameter = String.raw`(\w+)="([\x20-\x21\x23-\x5b\x5d-\x7e]*)"`; // section 3
  assert.match(challenges[0], new RegExp(`^Bearer( ${parameter}(, ${parameter})*)?$`));
  return Object.fromEntries([...challenges[0].matchAll(new RegExp(parameter, "g"))].map(([, name, value]) => [name, value]));
}

/** Repeats a request until its response meets a condition. */
async function sendUntil(api, makeRequest, isLast, limit) {
  for (const end = Date.now() + limit; ; await new Promise((done) => setTimeout(done, 250))) {
    const response = await send(api, makeRequest());
    if (isLast(response)) return response;
    assert.ok(Date.now() < end, `got status ${response.status} for ${limit} ms`);
  }
}

// Tests

let attacker; // an issuer whose keys no API may fetch
before(async () => (attacker = await (await startIssuer({ published: [stranger] })).up()));
after(() => attacker.down());

describe("the APIs of docs/apis", { concurrency: true, timeout: 120_000 }, () => {
  for (const [name, program] of Object.entries(programs)) {
    describe(name, { concurrency: 1 }, () => {
      let command, issuer, api;
      before(async () => {
        command = await program();
        issuer = await (await startIssuer()).up();
        api = await startAPI(command, issuer);
      });
      after(async () => {
        await api?.stop();
        await issuer?.down();
      });

      for (const [row, makeRequest, expected, otherwise = {}] of table) {
        test(row, async () => {
          const sent = makeRequest(issuer);
          assertResponse(await send(api, sent), otherwise[name] ?? expected, sent);
        });
      }

      test("unknown kids cause a limited number of requests to the issuer", async () => {
        const before = issuer.requests["/jwks"];
        for (let n = 0; n < 50; n++) {
          const requests = [...Array(4).keys()].map((m) => header({ kid: `made-up-${n}-${m}` })(issuer));
          for (const [m, response] of (await Promise.all(requests.map((r) => send(api, r)))).entries()) assertResponse(response, bad, requests[m]);
        }
        assert.ok(issuer.requests["/jwks"] - before <= 2, `200 tokens caused ${issuer.requests["/jwks"] - before} requests for keys`);
        const sent = bearing({})(issuer);
        assertResponse(await send(api, sent), good, sent);
      });

      test("keys were requested from the issuer only", () => {
        assert.deepEqual(attacker.requests, { [metadata]: 0, "/jwks": 0 });
      });
    });

    test(`${name}: the issuer is down, has another identifier, rotates keys`, async (t) => {
      const issuer = await startIssuer({ published: [keys.es] });
      const api = await startAPI(await program(), issuer);
      t.after(api.stop);
      t.after(issuer.down);
      const old = () => bearing({ key: keys.es })(issuer);
      const fresh = () => bearing({ key: successor })(issuer);

      const unavailable = { status: 503 };
      const isGood = ({ status }) => status === 200;

      assertResponse(await send(api, old()), unavailable, old());
      assertResponse(await send(api, { authorization: [] }), noToken, { authorization: [] });
      const redirect = (path) => ({ status: 302, headers: { Location: attacker.url + path } });
      for (const [path, response] of [
        [metadata, redirect(metadata)],
        [metadata, { status: 200, body: { issuer: `${issuer.url}/`, jwks_uri: `${issuer.url}/jwks` } }],
        ["/jwks", redirect("/jwks")],
      ]) {
        issuer.requests[path] = 0;
        issuer.instead = { [path]: response };
        await issuer.up();
        assertResponse(await sendUntil(api, old, () => issuer.requests[path] > 0, 15_000), unavailable, old());
        await issuer.down();
      }
      issuer.instead = {};
      await issuer.up();
      assertResponse(await sendUntil(api, old, isGood, 15_000), good, old());
      issuer.published = [successor];
      assertResponse(await sendUntil(api, fresh, isGood, 40_000), good, fresh()); // the libraries wait 30 s between two fetches
      assertResponse(await send(api, old()), bad, old());
      await issuer.down();
      assertResponse(await send(api, fresh()), good, fresh()); // with the cached keys
      assert.deepEqual(attacker.requests, { [metadata]: 0, "/jwks": 0 });
    });
  }
});

test("docs/apis.md shows the programs of docs/apis", async () => {
  const page = await readFile(join(repository, "docs/apis.md"), "utf8");
  const shown = [...page.matchAll(/^\[`?([^`\]]+)`?\]\(apis\/([^)]+)\).*\n\n```\w+\n([^]*?)^```$/gm)].map(([, , file, text]) => [file, text]);
  assert.deepEqual(
    shown.map(([file]) => file).sort(),
    ["dotnet/Orders.csproj", "dotnet/Program.cs", "go/main.go", "java/Orders.java", "java/pom.xml", "node/orders.js", "python/orders.py"],
  );
  for (const [file, text] of shown) assert.equal(text, await readFile(join(apis, file), "utf8"), file);
});
