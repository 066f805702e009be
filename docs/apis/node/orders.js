// An API that accepts access tokens of one issuer. jose verifies them.
import { createServer } from "node:http";
import { createRemoteJWKSet, errors, jwtVerify } from "jose";

const { PORT, ISSUER, AUDIENCE } = process.env;
if (!PORT || !ISSUER || !AUDIENCE) throw new Error("PORT, ISSUER and AUDIENCE must be set"); // otherwise jose would not check iss and aud

/** The response to a request without a valid token (RFC 6750 section 3). It has no part of the token. */
class Refused extends Error {
  constructor(status, error, scope) {
    super(error);
    this.status = status;
    this.headers = { "Cache-Control": "no-store" };
    if (status === 503) this.headers["Retry-After"] = "5";
    else this.headers["WWW-Authenticate"] = "Bearer" + (error ? ` error="${error}"` : "") + (scope ? `, scope="${scope}"` : "");
  }
}
const invalidToken = () => new Refused(401, "invalid_token");

// The URL of the keys is in the issuer's metadata. Both are fetched with the first token, so that
// this API can start while the issuer is down.
let keys;
async function findKeys() {
  const response = await fetch(`${ISSUER.replace(/\/$/, "")}/.well-known/openid-configuration`, { redirect: "error", signal: AbortSignal.timeout(5000) });
  const metadata = await response.json();
  if (metadata.issuer !== ISSUER) throw new Error("the metadata is of another issuer");
  // An unknown kid causes another fetch, at most one in 30 s: a client can invent a kid.
  return createRemoteJWKSet(new URL(metadata.jwks_uri), { cooldownDuration: 30_000, cacheMaxAge: 600_000, timeoutDuration: 5000 });
}
async function keyFor(header, jws) {
  try {
    keys ??= findKeys().catch((err) => ((keys = undefined), Promise.reject(err))); // concurrent requests share one fetch
    return await (await keys)(header, jws);
  } catch (err) {
    if (err instanceof errors.JWKSNoMatchingKey || err instanceof errors.JWKSMultipleMatchingKeys) throw invalidToken();
    throw new Refused(503); // the token may be valid
  }
}

/** Returns the claims of a valid token (RFC 9068 section 4). */
async function verify(token) {
  if (!/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token)) throw invalidToken(); // jose ignores padding
  const { protectedHeader, payload } = await jwtVerify(token, keyFor, {
    typ: "at+jwt", // not an ID token or logout token
    algorithms: ["RS256", "PS256", "ES256", "EdDSA"], // no HMAC: the public key would be the secret
    issuer: ISSUER,
    audience: AUDIENCE,
    clockTolerance: 30,
    maxTokenAge: Number.MAX_SAFE_INTEGER, // without it jose accepts an iat in the future
    requiredClaims: ["exp", "iat", "sub", "client_id", "jti"],
  }).catch((err) => Promise.reject(err instanceof Refused ? err : invalidToken()));
  const text = (claim) => typeof claim === "string" && claim !== "";
  if (
    "crit" in protectedHeader || "b64" in protectedHeader || "zip" in protectedHeader || // jose supports b64
    !text(payload.sub) || !text(payload.client_id) || !text(payload.jti) ||
    ![payload.scope ?? ""].flat().every((scope) => typeof scope === "string") || // some providers send an array
    "cnf" in payload // bound to a key, and this API verifies no proof
  ) throw invalidToken();
  return payload;
}

/** Returns the claims of the request's token if it is valid and has the scope. */
async function authorize(request, scope) {
  const sent = request.headersDistinct.authorization ?? [];
  if (sent.length === 0) throw new Refused(401);
  const query = new URLSearchParams(request.url.replace(/^[^?]*/, ""));
  if (sent.length > 1 || query.has("access_token")) throw new Refused(400, "invalid_request"); // one token, in one place (section 2)
  if (!/^Bearer( |$)/i.test(sent[0])) throw new Refused(401);
  const [, token] = /^Bearer +([\w.~+/-]+=*)$/i.exec(sent[0]) ?? [];
  if (!token) throw new Refused(400, "invalid_request");
  const claims = await verify(token);
  if (![claims.scope ?? ""].flat().join(" ").split(" ").includes(scope)) throw new Refused(403, "insufficient_scope", scope); // "read" is not in "readwrite"
  return claims;
}

const server = createServer(async (request, response) => {
  try {
    if (request.method !== "GET" || !/^\/orders(\?|$)/.test(request.url)) return response.writeHead(404).end();
    const claims = await authorize(request, "orders:read");
    response.writeHead(200, { "Content-Type": "application/json", "Cache-Control": "no-store" });
    response.end(JSON.stringify({ sub: claims.sub, orders: [] }));
  } catch (err) {
    if (!(err instanceof Refused)) console.error(err);
    response.writeHead(err.status ?? 500, err.headers).end();
  }
});
server.listen(Number(PORT), "127.0.0.1", () => console.log("listening on", server.address().port)); // behind a TLS proxy
