// panva's oidc-provider, a certified provider, in its strictest configuration. It requires PAR, signed requests, DPoP with nonces and private_key_jwt.
// Refresh tokens rotate, and access tokens are for one resource.
import { once } from "node:events";

// oidc-provider needs URL.parse, which Node 20 lacks.
URL.parse ??= (url, base) => (URL.canParse(url, base) ? new URL(url, base) : null);

const { default: Provider, errors } = await import("oidc-provider");

/**
 * @param {{ port: number, app: string, fapi?: boolean, requestObjects?: boolean }} options app is the origin of the broker
 */
export async function startProvider({ port, app, fapi = true, requestObjects = true, tokenLife = 30 }) {
  const issuer = `http://localhost:${port}`; // the same site as the app, so that frames of the app send its cookies
  const direct = app.replace("localhost", "127.0.0.1"); // for requests of the provider to the broker
  const events = [];
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: "spa",
        token_endpoint_auth_method: "private_key_jwt",
        token_endpoint_auth_signing_alg: "ES256",
        jwks_uri: `${direct}/bff/jwks.json`,
        grant_types: ["authorization_code", "refresh_token"],
        redirect_uris: [`${app}/bff/callback`],
        post_logout_redirect_uris: [`${app}/bff/logout/callback`],
        backchannel_logout_uri: `${direct}/bff/backchannel-logout`,
        backchannel_logout_session_required: true,
        id_token_signed_response_alg: "ES256",
        dpop_bound_access_tokens: true,
        require_pushed_authorization_requests: true,
        require_signed_request_object: requestObjects,
        request_object_signing_alg: requestObjects ? "ES256" : undefined,
      },
    ],
    fetch: (url, { dispatcher, ...options }) => fetch(url, options), // its own dispatcher rejects loopback addresses
    clientAuthMethods: ["private_key_jwt"],
    enabledJWA: { idTokenSigningAlgValues: ["ES256", "PS256", "EdDSA"], requestObjectSigningAlgValues: ["ES256"], clientAuthSigningAlgValues: ["ES256"], dPoPSigningAlgValues: ["ES256"] },
    jwks: { keys: [await signingKey()] },
    features: {
      devInteractions: { enabled: true },
      pushedAuthorizationRequests: { enabled: true, requirePushedAuthorizationRequests: true },
      requestObjects: { enabled: requestObjects, requireSignedRequestObject: requestObjects },
      dPoP: { enabled: true, nonceSecret: Buffer.alloc(32, "n"), requireNonce: () => true },
      fapi: fapi ? { enabled: true, profile: "2.0" } : { enabled: false },
      backchannelLogout: { enabled: true },
      rpInitiatedLogout: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => undefined,
        useGrantedResource: () => false,
        getResourceServerInfo(_ctx, resource) {
          if (!/^https:\/\/(orders|billing)\.example$/.test(resource)) throw new errors.InvalidTarget();
          return { scope: "api:read", audience: resource, accessTokenFormat: "jwt", jwt: { sign: { alg: "ES256" } } };
        },
      },
    },
    scopes: ["openid", "offline_access"],
    claims: { openid: ["sub"], profile: ["name"], acr: null, auth_time: null, sid: null },
    conformIdTokenClaims: false,
    rotateRefreshToken: true,
    issueRefreshToken: async (_ctx, client, code) => client.grantTypeAllowed("refresh_token") && code.scopes.has("openid"),
    pkce: { required: () => true },
    ttl: { AccessToken: tokenLife, IdToken: 300, RefreshToken: 3600, Session: 3600, Grant: 3600, Interaction: 600 },
    findAccount: (_ctx, id) => ({ accountId: id, claims: async () => ({ sub: id, name: `${id} of oidc-provider` }) }),
    cookies: { keys: ["k"] },
    clockTolerance: 5,
  });
  provider.on("server_error", (_ctx, err) => events.push(`server_error: ${err.stack}`));
  for (const event of ["grant.error", "pushed_authorization_request.error", "authorization.error", "backchannel.error", "revocation.error", "grant.revoked"]) {
    provider.on(event, (_ctx, err) => events.push(`${event}: ${[err?.message, err?.error_description, err?.error_detail, err?.cause?.error_description, err?.cause?.cause].filter(Boolean).join(": ")}`));
  }
  let [refreshes, nonces] = [0, 0];
  for (const event of ["grant.error", "pushed_authorization_request.error"]) {
    provider.on(event, (_ctx, err) => err.message === "use_dpop_nonce" && nonces++);
  }
  provider.on("grant.success", (ctx) => ctx.oidc.params.grant_type === "refresh_token" && refreshes++);
  const server = provider.listen(port, "127.0.0.1");
  await once(server, "listening");
  return {
    issuer,
    events,
    refreshes: () => refreshes,
    nonces: () => nonces,
    stop: () =>
      new Promise((done) => {
        server.close(done);
        server.closeAllConnections();
      }),
  };
}

async function signingKey() {
  const { privateKey } = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, ["sign", "verify"]);
  const { kty, crv, x, y, d } = await crypto.subtle.exportKey("jwk", privateKey);
  return { kty, crv, x, y, d, alg: "ES256", use: "sig", kid: "k1" };
}
