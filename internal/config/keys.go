package config

import (
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/web"
)

// Key describes one key of the configuration.
type Key struct {
	Name    string // such as oidc.issuer, or routes[].path for each element of a list
	Default string // as in the file; empty: none
	Doc     string // one or two sentences in Markdown
}

// Variable returns the environment variable that sets the key, or "" if only
// the list that holds it has one.
func (k Key) Variable() string {
	if strings.Contains(k.Name, "[]") {
		return ""
	}
	return variable(k.Name)
}

// restartKeys are the keys and sections that only a restart can change.
// Of store.url a reload applies the user and password. The files of server.tls
// are not among them, but only a restart turns TLS on or off.
var restartKeys = []string{"server.listen", "server.admin_listen", "server.limits.header_bytes",
	"store.url", "store.prefix", "store.ca_file", "store.cert_file", "store.key_file"}

// AppliedOnReload reports whether a reload applies a change of the key.
// Otherwise a change needs a restart.
func (k Key) AppliedOnReload() bool {
	return !slices.ContainsFunc(restartKeys, func(section string) bool {
		return k.Name == section || strings.HasPrefix(k.Name, section+".")
	})
}

// Type returns the type of the key's value, such as "duration".
func (k Key) Type() string {
	t := reflect.TypeFor[Config]()
	for name := range strings.SplitSeq(k.Name, ".") {
		f, _ := fieldNamed(reflect.Zero(t), strings.TrimSuffix(name, "[]"))
		t = f.Type()
		if strings.HasSuffix(name, "[]") || t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
	}
	return typeNames[t]
}

var typeNames = map[reflect.Type]string{
	reflect.TypeFor[string]():              "string",
	reflect.TypeFor[bool]():                "boolean",
	reflect.TypeFor[int]():                 "integer",
	reflect.TypeFor[time.Duration]():       "duration",
	reflect.TypeFor[Delay]():               "duration",
	reflect.TypeFor[session.Secret]():      "secret",
	reflect.TypeFor[[]session.Secret]():    "secrets",
	reflect.TypeFor[[]string]():            "list",
	reflect.TypeFor[map[string]string]():   "map",
	reflect.TypeFor[map[string][]string](): "map of lists",
	reflect.TypeFor[ByteSize]():            "size",
	reflect.TypeFor[ByteRate]():            "size per second",
	reflect.TypeFor[EventRate]():           "rate",
	reflect.TypeFor[BurstSize]():           "integer",
	reflect.TypeFor[MaxAge]():              "duration",
	reflect.TypeFor[map[string]any]():      "map",
}

// alternatives returns values in a sentence, such as "`a`, `b` or `c`".
func alternatives(values []string) string {
	last := len(values) - 1
	return "`" + strings.Join(values[:last], "`, `") + "` or `" + values[last] + "`"
}

// Keys are all keys, in the order of the schema.
var Keys = []Key{
	{"server.listen", "127.0.0.1:8080",
		"Address for browsers, or for the proxy in front of the broker. In a container :8080."},
	{"server.public_url", "",
		"Required. URL at which the browser sees the app: `https`, or `http` on a loopback host. It can have a path, " +
			"such as `https://example.com/shop`."},
	{"server.prefix", "/bff", "Path of the endpoints for the browser."},
	{"server.admin_listen", "127.0.0.1:9090", "Address of `/healthz`, `/readyz`, `/metrics` and `/admin/`."},
	{"server.admin_token", "",
		"Bearer token that `/admin/` and `/metrics` require, also on the loopback interface. " +
			"Without one, `server.admin_listen` has to be on that interface."},
	{"server.trusted_proxies", "",
		"Networks whose `X-Forwarded-*`, `Forwarded` and `X-Request-Id` headers are trusted."},
	{"server.page_file", "",
		"Go template (`html/template`) of the pages that the broker itself shows, such as errors."},
	{"server.shutdown_delay", "0s, in Kubernetes 5s",
		"How long the public listener stays open after SIGTERM, while `/readyz` is 503. " +
			"A load balancer needs that time to notice."},
	{"server.shutdown_grace", "30s", "How long requests in flight may take after that."},
	{"server.tls.cert_file", "", "Certificate of the public listener, in PEM. A restart turns TLS on or off."},
	{"server.tls.key_file", "", "Private key of that certificate, in PEM."},
	{"server.limits.connections", "0",
		"Connections that the public listener serves at once. 0: derived from file descriptors and memory."},
	{"server.limits.header_bytes", "64KiB",
		"Maximum size of a request header, with the request line. Beyond it the response is 431."},
	{"server.limits.body_min_rate", "240B/s",
		"Minimum rate of a body, measured over 30 seconds. `off`: no minimum."},
	{"server.limits.logins.rate", "4/s",
		"Login attempts, and failed code exchanges, of one client address."},
	{"server.limits.logins.burst", "40", "How many of them may come at once."},
	{"oidc.issuer", "", "Required. Issuer of the provider, exactly as its metadata has it."},
	{"oidc.client_id", "", "Required. Client ID at the provider."},
	{"oidc.client_secret", "",
		"Client secret. Required for `client_secret_basic` and `client_secret_post`."},
	{"oidc.client_auth", "client_secret_basic",
		"Client authentication: `client_secret_basic`, `client_secret_post`, `private_key_jwt`, `jwt_file`, " +
			"`tls_client_auth` or `self_signed_tls_client_auth`."},
	{"oidc.scopes", "openid, profile, email, offline_access",
		"Scopes to request at login. `openid` is added if it is missing."},
	{"oidc.client_key", "", "Private keys in PEM. The first signs, all are published."},
	{"oidc.client_cert_file", "", "Certificate for the first client key, in PEM."},
	{"oidc.client_assertion_audience", "oidc.issuer",
		"Audience of client assertions: a URL, or `endpoint` for the endpoint that is called."},
	{"oidc.client_assertion_file", "",
		"JWT with which `jwt_file` authenticates, such as a token of Kubernetes. Read for each request."},
	{"oidc.client_assertion_type", "jwt-bearer", "Type of that JWT: `jwt-bearer`, or `jwt-spiffe` for a JWT-SVID."},
	{"oidc.trusted_audiences", "", "Audiences that an ID token may name besides this client."},
	{"oidc.ca_file", "CAs of the system", "CAs that sign the provider's certificate, in PEM."},
	{"oidc.profile", "", "`fapi2` enforces the FAPI 2.0 Security Profile."},
	{"oidc.resource", "", "Resources that access tokens are for (RFC 8707)."},
	{"oidc.audience", "", "Value of the parameter `audience`, for providers that have it."},
	{"oidc.authorization_parameters", "", "Further parameters of each authorization request."},
	{"oidc.prompt_after_end", "login",
		"What a sign-in asks the provider for after an idle timeout, a revocation or an end by " +
			"`session.max_per_user`: `login` (the password), " +
			"`select_account`, or `provider` (it decides)."},
	{"oidc.pushed_requests", "auto", "Pushed authorization requests (RFC 9126): `auto`, `always` or `never`."},
	{"oidc.sign_requests", "false", "Sign authorization requests (RFC 9101)."},
	{"oidc.response_mode", "query", "Response mode: `query` or `form_post`."},
	{"oidc.sender_constraint", "", "Bind access tokens to a key: `dpop` (RFC 9449) or `mtls` (RFC 8705)."},
	{"oidc.userinfo", "false", "Read the user's claims from the userinfo endpoint too."},
	{"oidc.wait", "5s", "How long a request waits for the provider before 503."},
	{"oidc.access_token_lifetime", "5m",
		"Lifetime of an access token that has neither `expires_in` nor `exp`."},
	{"oidc.id_token_alg", "any asymmetric one in the metadata",
		"Algorithm of ID tokens, logout tokens and signed userinfo responses."},
	{"oidc.logout_url", "from the metadata", "End-session endpoint, for providers that do not publish it."},
	{"oidc.logout_redirect_parameter", "post_logout_redirect_uri",
		"Name of the parameter `post_logout_redirect_uri` at that endpoint."},
	{"store.url", "memory:",
		"Session store: `memory:`, `file:/DIRECTORY` for one replica, `redis:`, `redis+sentinel:`, " +
			"`redis+cluster:` or `unix:`. " +
			"`rediss` instead of `redis` uses TLS. " +
			"A reload applies a changed user and password."},
	{"store.prefix", "cloakroom:", "Prefix of each key in Redis."},
	{"store.ca_file", "CAs of the system", "CAs that sign the certificates of Redis, in PEM."},
	{"store.cert_file", "", "Client certificate for Redis, in PEM. Read for each new connection."},
	{"store.key_file", "", "Private key of that certificate, in PEM."},
	{"store.password_file", "", "Password of Redis. Read for each new connection."},
	{"session.keys", "",
		"Required unless `store.url` is `memory:`. Each is the base64 of 32 random bytes. The first seals, all " +
			"open."},
	{"session.idle_timeout", "30m", "A session ends after this time without an API call."},
	{"session.max_lifetime", "12h", "A session ends this time after login at the latest."},
	{"session.refresh_ahead", "1m", "Tokens are refreshed this time before they expire."},
	{"session.cache_max_age", "5s", "Maximum age of a cached session if no invalidation arrives."},
	{"session.max_per_user", "0", "Maximum number of sessions of a user. 0: no maximum."},
	{"session.cookie.same_site", "strict", "SameSite of the session cookie: `strict` or `lax`."},
	{"session.claims.allow", "all", "Claims that the app may see."},
	{"session.claims.map", "", "Claims under other names: name to the path of the claim."},
	{"session.keep_storage", "false", "Keep the app's storage in the browser at logout. Cookies stay in any case."},
	{"routes[].path", "", "Required. Path prefix of the route. The longest prefix wins."},
	{"routes[].upstream", "", "Required. URLs of the upstream: `http`, `https`, `h2c` or `unix`."},
	{"routes[].upstream_tls.ca_file", "CAs of the system", "CAs that sign the upstream's certificate, in PEM."},
	{"routes[].upstream_tls.cert_file", "", "Client certificate for the upstream, in PEM."},
	{"routes[].upstream_tls.key_file", "", "Private key of that certificate, in PEM."},
	{"routes[].strip_prefix", "false", "Remove `path` from the request's path."},
	{"routes[].methods", "all", "Methods that are allowed."},
	{"routes[].token", "",
		"Required. Access token to attach: `user`, `optional`, `client`, `user-or-client` or `none`."},
	{"routes[].resource", "that of the session's own token", "Resource that the token is for (RFC 8707)."},
	{"routes[].audience", "", "Audience that the token is for (RFC 8693)."},
	{"routes[].scopes", "", "Scopes of the token."},
	{"routes[].grant", "refresh-token", "How the token is obtained: `refresh-token` or `token-exchange`."},
	{"routes[].csrf", "auto", "Proof of the request's origin: `header`, `fetch-metadata` or `auto`."},
	{"routes[].accept_bearer.issuer", "oidc.issuer", "Issuer of access tokens that callers send."},
	{"routes[].accept_bearer.ca_file", "oidc.ca_file for oidc.issuer, otherwise CAs of the system",
		"CAs that sign that issuer's certificate, in PEM."},
	{"routes[].accept_bearer.audience", "", "Required. Audience of those tokens."},
	{"routes[].accept_bearer.scopes", "", "Scopes that a token must have."},
	{"routes[].accept_bearer.clients", "any", "Clients whose tokens are accepted."},
	{"routes[].accept_bearer.algorithms", "RS256, PS256, ES256, EdDSA, Ed25519", "Accepted algorithms."},
	{"routes[].accept_bearer.insecure_allow_any_type", "false",
		"Accept a `typ` other than `at+jwt` (RFC 9068). An ID token could then pass."},
	{"routes[].documents", "", "`allow`: do not sandbox documents that can run script."},
	{"routes[].encoded_slashes", "", "`pass`: send `%2F` in a path unchanged instead of refusing it."},
	{"routes[].headers_json", "", "Request headers that carry a claim as JSON: header to claim."},
	{"routes[].timeouts.connect", "10s", "Timeout of a connection to the upstream."},
	{"routes[].timeouts.response_header", "1m",
		"Timeout from the end of the request to the response header."},
	{"routes[].timeouts.idle", "", "A request in which nothing moves for this time is aborted."},
	{"routes[].max_body", "", "Maximum size of a request body. 413 beyond it."},
	{"routes[].retry", "once", "Retry idempotent requests whose connection fails: `once` or `never`."},
	{"routes[].headers", "", "Request headers that carry a claim: header to claim."},
	{"routes[].require.scopes", "", "Scopes that the access token must have, else 403."},
	{"routes[].require.claims", "", "Claims that the user must have, one of several values each, else 403."},
	{"routes[].require.acr", "", "Accepted authentication contexts, else 401 (RFC 9470)."},
	{"routes[].require.max_age", "", "Maximum age of the sign-in, else 401 (RFC 9470)."},
	{"frontend.dir", "",
		"Directory of the built app. Without it and `frontend.url` only endpoints and routes are served."},
	{"frontend.url", "",
		"A development server (`http`, on this machine or in a private network) or a CDN (`https`) that has the " +
			"app, instead of `frontend.dir`."},
	{"frontend.fallback", "auto", "Response to a navigation without a file: `index` (index.html), `none` " +
		"(404.html with status 404), or `auto` (`none` if there is a 404.html)."},
	{"frontend.csp", "",
		"Sources that the Content-Security-Policy allows besides its strict default: directive to sources. " +
			"`cloakroom csp DIR` prints what a build needs."},
	{"frontend.csp_report_only", "false",
		"Browsers report what the Content-Security-Policy would block, and block nothing."},
	{"frontend.permissions_policy", "",
		"Browser features that the app uses: name to `self`, `*` and origins. An empty list denies one."},
	{"frontend.referrer_policy", "no-referrer",
		"Referrer-Policy: " + alternatives(web.ReferrerPolicies()) + "."},
	{"frontend.opener_policy", "same-origin",
		"Cross-Origin-Opener-Policy: " + alternatives(web.OpenerPolicies()) + "."},
	{"frontend.hsts.max_age", "8760h",
		"How long browsers use https only, with https in `server.public_url`. `hsts: off` sends no header."},
	{"frontend.hsts.include_subdomains", "true", "Apply that to all subdomains, too."},
	{"frontend.source_maps", "false", "Serve `*.map` files. They contain the app's source code."},
	{"frontend.config", "",
		"Public settings for the app. `GET /bff/config.json` returns them without a session. " +
			"Values keep their types."},
	{"log.level", "info", "Least level of log lines: `error`, `warn`, `info` or `debug`."},
	{"log.format", "json", "Format of log lines: `json` or `text`."},
	{"log.access", "all", "Requests to log: `all`, `errors` (status 400 and above) or `none`."},
	{"log.exclude", "", "Paths whose requests are not logged, each with all below it."},
	{"log.audit", "", "Regular file that events are appended to, or `stdout`. Empty: events are in the log only."},
	{"log.users", "hash", "Form of user IDs in logs and events: `hash` (keyed), `plain` or `none`."},
}
