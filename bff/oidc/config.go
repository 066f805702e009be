package oidc

import (
	"cmp"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Config is the configuration of a Client: the provider, this client's
// registration there, and what is requested for each login.
type Config struct {
	// Issuer is the issuer identifier, exactly as the provider's metadata has
	// it. It uses https, or http on a loopback host.
	Issuer string
	// ClientID is the client's id at the provider. It is required.
	ClientID string

	// ClientAuth is the method of client authentication. Empty means
	// ClientSecretBasic.
	ClientAuth ClientAuth
	// ClientSecret is required by ClientSecretBasic and ClientSecretPost, and
	// an error with any other method.
	ClientSecret session.Secret
	// ClientKeys sign client assertions and request objects: RSA of 2048 bits
	// or more, P-256, P-384, P-521 or Ed25519. The first one signs. All are
	// published (Client.JWKS), so that a new key is known before it is used.
	// PrivateKeyJWT and SignRequests require one.
	ClientKeys []crypto.Signer
	// ClientCertificate is the TLS client certificate for the provider. If
	// SenderConstraint is SenderConstraintMTLS, upstreams receive it too.
	ClientCertificate *tls.Certificate
	// AssertionAudience is the aud of client assertions, for a provider that
	// does not accept its issuer (RFC 10070, section 4): a URL, or "endpoint"
	// for the URL of the endpoint that receives the assertion. Then the keys
	// must not be used anywhere else. Empty means the issuer.
	AssertionAudience string
	// ClientAssertionFile holds the client assertion of JWTFile, which requires
	// it. No other method may have it. It is read for each request.
	ClientAssertionFile string
	// ClientAssertionType is the type of that assertion. Empty means JWTBearer.
	ClientAssertionType ClientAssertionType
	// TrustedAudiences may occur beside ClientID in the aud of the provider's
	// tokens (OpenID Connect Core, section 3.1.3.7 (3)). Empty means none.
	TrustedAudiences []string

	// Scopes are requested at login, besides openid and the scopes of Targets.
	// Empty means openid, profile, email and offline_access.
	Scopes []string
	// Resources are the resource indicators of the session's own access token
	// (RFC 8707). Those of Targets are requested besides. Empty means none.
	Resources []string
	// Audience is the parameter audience, which some providers have in place of
	// resource. Empty means that it is not sent.
	Audience string
	// Parameters are added to authorization requests, such as
	// access_type=offline. Parameters that a Client sets by itself, such as
	// scope and state, are an error. Nil means none.
	Parameters map[string]string

	// PushedRequests selects when authorization requests are pushed (RFC 9126).
	// Empty means PushAuto.
	PushedRequests PushedRequests
	// SignRequests signs authorization requests (RFC 9101). They are also
	// signed if the provider's metadata requires it.
	SignRequests bool
	// ResponseMode is the response mode of authorization requests. Empty means
	// ResponseModeQuery.
	ResponseMode ResponseMode
	// SenderConstraint binds access tokens to a key, so that a stolen token is
	// of no use. Empty means bearer tokens.
	SenderConstraint SenderConstraint
	// UserInfo adds the claims of the userinfo endpoint to those of the ID
	// token.
	UserInfo bool
	// IDTokenAlg is the algorithm of ID tokens, logout tokens and signed
	// userinfo responses, such as RS256, as this client is registered for it.
	// Empty means any with a public key that the provider's metadata lists.
	IDTokenAlg string
	// FAPI2 enforces the FAPI 2.0 Security Profile, for the provider and for
	// the other fields.
	FAPI2 bool

	// LogoutURL replaces the end_session_endpoint of the metadata, for a
	// provider that has none there. Empty means end_session_endpoint.
	LogoutURL string
	// LogoutRedirectParameter is the name of the parameter with the redirect
	// URI in a logout request. Empty means post_logout_redirect_uri.
	LogoutRedirectParameter string

	// Wait is how long a request waits for the provider before it is refused
	// with 503. Zero means 5 seconds.
	Wait time.Duration
	// AccessTokenLifetime is how long an access token is used if neither the
	// token response nor the token says when it expires. Zero means 5 minutes.
	AccessTokenLifetime time.Duration

	// The following fields are set by bff.New up to Logger.

	// RedirectURI is where the provider sends the browser back to. It is
	// constant: no request header takes part in it (RFC 9700, section 4.1.3).
	RedirectURI string
	// ClaimMap adds claims to Identity.User under other names: name → the path
	// of the value, with dots between the names of nested objects.
	ClaimMap map[string]string
	// Targets are those for which sessions get access tokens besides their own.
	Targets []Target
	// WithoutLogin means that there are no logins: only client credentials are
	// used, for which the metadata needs no authorization_endpoint and no
	// jwks_uri.
	WithoutLogin bool
	// Logger receives the state of the provider. Nil means slog.Default().
	Logger *slog.Logger
	// TracerProvider makes an OpenTelemetry span for each request to the
	// provider. Nil means no spans.
	TracerProvider trace.TracerProvider
	// Observe is called after each request to the provider, probes included.
	// endpoint is token, discovery, jwks, userinfo, revocation,
	// pushed_authorization_request or provider (any other). status is that of
	// the response, or 0 if there was none. took is the time until the header
	// of the response. Nil means that nothing is called.
	Observe func(endpoint string, status int, took time.Duration)

	// RootCAs verify the provider's certificate. Nil means those of the system.
	RootCAs *x509.CertPool
	// HTTPClient reaches the provider. Nil means one that notices a dead
	// connection within 30 seconds. Redirects are never followed, and its
	// Timeout does not apply to token requests, whose refresh token may have
	// been rotated already. With it, neither RootCAs nor ClientCertificate can
	// be set: its transport has them. It should use HTTP/1.1: on one connection
	// of HTTP/2, a provider that stops would fail all requests in flight.
	HTTPClient *http.Client
}

// MaxWait returns Wait, or its default.
func (c *Config) MaxWait() time.Duration { return cmp.Or(c.Wait, 5*time.Second) }

// ClientAuth is a method of client authentication (OpenID Connect Core, section
// 9; RFC 8705, section 2).
type ClientAuth string

const (
	// ClientSecretBasic and ClientSecretPost send Config.ClientSecret, in the
	// header Authorization or in the body.
	ClientSecretBasic ClientAuth = "client_secret_basic"
	ClientSecretPost  ClientAuth = "client_secret_post"
	// PrivateKeyJWT sends a client assertion that Config.ClientKeys sign.
	PrivateKeyJWT ClientAuth = "private_key_jwt"
	// JWTFile sends the client assertion in Config.ClientAssertionFile: a JWT
	// that another issuer gives this workload, such as Kubernetes or SPIFFE. It
	// may be used several times, and its reader can act as this client until it
	// expires.
	JWTFile ClientAuth = "jwt_file"
	// TLSClientAuth and SelfSignedTLSClientAuth authenticate with
	// Config.ClientCertificate, which a CA has signed or the provider knows.
	TLSClientAuth           ClientAuth = "tls_client_auth"
	SelfSignedTLSClientAuth ClientAuth = "self_signed_tls_client_auth"
)

// usesTLS reports whether a client certificate authenticates the client.
func (a ClientAuth) usesTLS() bool { return a == TLSClientAuth || a == SelfSignedTLSClientAuth }

// ClientAssertionType says how the provider verifies a client assertion.
type ClientAssertionType string

const (
	// JWTBearer is the type of a JWT (RFC 7523, section 2.2).
	JWTBearer ClientAssertionType = "jwt-bearer"
	// JWTSPIFFE is the type of a JWT-SVID
	// (draft-ietf-oauth-spiffe-client-auth).
	JWTSPIFFE ClientAssertionType = "jwt-spiffe"
)

// PushedRequests selects when authorization requests are pushed.
type PushedRequests string

const (
	PushAuto   PushedRequests = "auto"   // if the provider has an endpoint for them
	PushAlways PushedRequests = "always" // without the endpoint, discovery fails
	PushNever  PushedRequests = "never"
)

// ResponseMode is how the browser brings the authorization response to
// RedirectURI.
type ResponseMode string

const (
	// ResponseModeQuery puts it into the query.
	ResponseModeQuery ResponseMode = "query"
	// ResponseModeFormPost has a form posted, which keeps the code out of URLs
	// (OAuth 2.0 Form Post Response Mode).
	ResponseModeFormPost ResponseMode = "form_post"
)

// SenderConstraint is what access tokens are bound to.
type SenderConstraint string

const (
	// SenderConstraintDPoP binds them to a key of the session (RFC 9449).
	SenderConstraintDPoP SenderConstraint = "dpop"
	// SenderConstraintMTLS binds them to Config.ClientCertificate (RFC 8705,
	// section 3).
	SenderConstraintMTLS SenderConstraint = "mtls"
)
