// Package bearer protects an HTTP API with OAuth access tokens. It verifies
// JWTs of RFC 9068, sent as bearer tokens (RFC 6750) or bound to their sender
// with DPoP (RFC 9449) or mutual TLS (RFC 8705).
//
//	verifier, err := bearer.NewVerifier(bearer.Config{
//		Issuer:   "https://id.example.com",
//		Audience: "orders",
//	})
//	...
//	mux.Handle("GET /orders", verifier.Handler(bearer.Require("orders:read")(listOrders)))
//
// [Verifier.Handler] rejects requests without a valid token. The handler inside
// it gets the token from [FromContext]. [Require], [RequireAny], [RequireACR]
// and [RequireFresh] add requirements. [Verifier.Verify] checks a token that
// did not come in an HTTP request. [Verifier.Explain] lists every check and its
// result. For an API with several issuers, make one Verifier each and combine
// them with [NewMultiVerifier].
//
// # Checks
//
// A token is valid if all of the following holds. Nothing else is checked.
//
//   - The token is a JWS in compact serialization of at most 16 KiB, without
//     the header parameters crit, b64 and zip. Encrypted tokens are rejected.
//   - typ is at+jwt, so that ID tokens and logout tokens are rejected.
//   - alg is one of Config.Algorithms, compared exactly. The issuer's key with
//     the token's kid has the matching type and, if it names one, the same alg.
//     A token without a kid is accepted if exactly one key fits. Keys in the
//     token, or referenced by it, are ignored.
//   - The signature is valid. Before that is known, nothing in the payload is
//     trusted.
//   - No claim occurs twice. None of the claims below occurs in another case.
//     Other claims whose names differ in case are different claims.
//   - iss equals Config.Issuer and aud contains Config.Audience, compared
//     exactly.
//   - exp is in the future, nbf and iat are not, allowing for Config.Leeway.
//   - exp, sub, client_id, iat and jti are present. If Config.Clients is set,
//     client_id is one of them.
//   - A token bound to a key or a certificate (cnf) comes with proof of
//     possession: see Config.Origin and Config.ClientCertificate.
//
// A token that is not a JWT is rejected unless Config.Introspection is set.
//
// # What is left to the API
//
// The API decides what the subject may do. A token of the client credentials
// grant represents the client, and its sub may equal a user's. Call
// [Token.IsClient] before treating Subject as a user.
//
// Identify revoked tokens by Token.Issuer and Token.ID, not by the token
// string: every ECDSA signature has a second valid encoding, so one token has
// two strings.
//
// # Keys
//
// Keys come from the jwks_uri of the issuer's metadata: OpenID Connect
// Discovery 1.0 section 4, or else RFC 8414 section 3. They are fetched with
// the first token, so an API can start while its issuer is down. After that a
// verification causes no request to the issuer, with these exceptions:
//
//   - Keys are fresh for the max-age of their Cache-Control header, between 1
//     minute and 1 hour, or for 10 minutes without one. The first token in the
//     last fifth of that time starts a fetch in the background. If no token
//     arrived in it, the next token waits for a fetch. A withdrawn key is not
//     trusted any longer than that.
//   - If the issuer fails, or returns no usable key, the last keys are used for
//     up to another hour.
//   - A token with an unknown kid starts a fetch and waits for it. Concurrent
//     requests share the fetch. The next fetch for this reason is at least 30
//     seconds later. Until then an unknown kid is rejected at once: as invalid,
//     or with ErrUnavailable if the last fetch failed.
//
// If there are no keys to decide with, the error is [ErrUnavailable] and never
// an [InvalidTokenError].
//
// The last 4096 valid tokens are cached until they expire or the keys change.
// Verifying a cached token costs one hash. The proof of a bound token is
// checked every time.
package bearer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/jwks"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
)

// Config configures a [Verifier]. Issuer and Audience are required.
type Config struct {
	// Issuer is the issuer identifier exactly as it appears in iss and in the
	// issuer's metadata. It is an https URL. http is allowed if the host is
	// localhost, a name below .localhost, or a loopback address.
	Issuer string

	// Audience is the identifier of this API. aud must contain it.
	Audience string

	// Clients lists the accepted values of client_id. Empty means all clients
	// of the issuer.
	Clients []string

	// Algorithms lists the accepted values of alg: RS256, RS384, RS512, PS256,
	// PS384, PS512, ES256, ES384, ES512, EdDSA, Ed25519. EdDSA and Ed25519 are
	// two names of one algorithm (RFC 9864); only the listed names are
	// accepted. Empty means RS256, PS256, ES256, EdDSA and Ed25519.
	Algorithms []string

	// Leeway is the tolerated difference between the issuer's clock and the
	// local clock, at most 60 s. Zero means 30 s.
	Leeway time.Duration

	// InsecureAllowAnyType accepts tokens whose typ is missing or is not
	// at+jwt, for issuers that set typ to JWT, or not at all, in everything
	// they sign. A typ that names another kind of JWT, such as logout+jwt, is
	// still rejected. So is a token with a claim of ID or logout tokens (nonce,
	// at_hash, c_hash, events), or one that declares itself such a token
	// (token_use, typ). An ID token without these claims is rejected only
	// because of its audience, so Audience must not be a client id.
	//
	// Such issuers usually deviate from RFC 9068 in other ways, so with this
	// option iat and jti are optional, azp, cid or appid are accepted as
	// client_id, which may be missing, and scp, a string or an array, is
	// accepted as scope.
	InsecureAllowAnyType bool

	// InsecureAllowNoAudience accepts tokens without aud, for issuers that send
	// none, such as Amazon Cognito. Clients is then required. A token of one of
	// these clients is valid at every API with this setting.
	InsecureAllowNoAudience bool

	// Introspection configures how tokens that are not JWTs are validated by
	// the issuer. Nil means that they are rejected.
	Introspection *Introspection

	// Origin is the scheme and host of this API as clients see it, such as
	// https://api.example.com. If it is set, DPoP-bound tokens are accepted
	// with a proof (RFC 9449 section 7). It must be correct, because the client
	// signs the URL of its request. Empty means the origin of Resource. If that
	// is empty too, DPoP-bound tokens are rejected.
	//
	// Each Verifier remembers the proofs it has accepted and rejects a replay.
	// Replicas of an API do not share this memory: an attacker who reads one
	// replica's traffic can replay a proof at another one for a minute.
	Origin string

	// ClientCertificate returns the certificate that the client of a request
	// has proven to possess, or nil. If it is set, certificate-bound tokens are
	// accepted (RFC 8705 section 3). Use [PeerCertificate] if this program
	// terminates TLS. Nil means that certificate-bound tokens are rejected.
	ClientCertificate func(*http.Request) *x509.Certificate

	// RequireBound rejects tokens that are not bound to their sender. A stolen
	// token of that kind can be used by anyone.
	RequireBound bool

	// Resource is the resource identifier of this API (RFC 9728), an https URL.
	// [Verifier.Metadata] serves the metadata for it, and challenges refer to
	// that metadata. Empty means no metadata.
	Resource string

	// Scopes lists the scopes in the metadata.
	Scopes []string

	// Realm is the realm parameter of challenges (RFC 9110 section 11.5). Empty
	// means none.
	Realm string

	// HTTPClient fetches the issuer's metadata and keys. Its CheckRedirect is
	// replaced: only redirects to the same host are followed. Nil means a
	// client with http.DefaultTransport. Every fetch times out after 10 s.
	HTTPClient *http.Client

	// Logger receives failures to fetch keys and the recovery, and at debug
	// level the reason for each rejected request. Tokens are never logged. Nil
	// means slog.Default().
	Logger *slog.Logger
}

const (
	defaultLeeway = 30 * time.Second
	maxLeeway     = 60 * time.Second
)

var defaultAlgorithms = []string{"RS256", "PS256", "ES256", "EdDSA", "Ed25519"}

// Verifier verifies access tokens. It is safe for concurrent use. Make one with
// [NewVerifier] or [NewMultiVerifier].
type Verifier struct {
	issuers []*issuer
	good    cache[*goodToken]
	proofs  proofs

	origin       string // scheme://host, in lower case; empty: no DPoP
	certificate  func(*http.Request) *x509.Certificate
	requireBound bool
	resource     *url.URL // nil: no metadata
	scopes       []string
	realm        string
	log          *slog.Logger
}

// issuer holds the settings and keys of one issuer.
type issuer struct {
	url        string
	audience   string
	noAudience bool // aud may be missing
	clients    []string
	algorithms []string
	leeway     time.Duration
	anyType    bool
	keys       *jwks.Set
	unknown    *rate.Limiter // limits fetches caused by unknown kids
	introspect *introspector // nil: not configured
}

// ConfigError is a mistake in one field of a Config. Its fields are Key, such
// as Audience or Introspection.Endpoint, Value, which is empty for a secret,
// and Err.
type ConfigError = configerr.Error

// NewVerifier returns a Verifier for cfg. It does no I/O. The error joins a
// *ConfigError for every mistake in cfg, such as `Audience: missing`.
func NewVerifier(cfg Config) (*Verifier, error) {
	i := &issuer{
		url:        cfg.Issuer,
		audience:   cfg.Audience,
		noAudience: cfg.InsecureAllowNoAudience,
		clients:    slices.Clone(cfg.Clients),
		algorithms: slices.Clone(cfg.Algorithms),
		leeway:     cfg.Leeway,
		anyType:    cfg.InsecureAllowAnyType,
	}
	v := &Verifier{
		issuers:      []*issuer{i},
		certificate:  cfg.ClientCertificate,
		requireBound: cfg.RequireBound,
		scopes:       slices.Clone(cfg.Scopes),
		realm:        cfg.Realm,
		log:          cfg.Logger,
	}
	var errs []error
	fail := func(key string, value any, err error) {
		errs = append(errs, configerr.New(key, value, err))
	}
	if err := checkIssuer(cfg.Issuer); err != nil {
		fail("Issuer", cfg.Issuer, err)
	}
	if cfg.Audience == "" {
		fail("Audience", nil, errors.New("missing"))
	}
	if cfg.InsecureAllowNoAudience && len(cfg.Clients) == 0 {
		fail("Clients", nil, errors.New("missing; required with InsecureAllowNoAudience"))
	}
	if slices.Contains(cfg.Clients, "") {
		fail("Clients", nil, errors.New("contains an empty client id"))
	}
	if len(cfg.Algorithms) == 0 {
		i.algorithms = defaultAlgorithms
	}
	for _, name := range cfg.Algorithms {
		if !jwks.IsAlgorithm(name) { // none and HMAC among them (RFC 8725 sections 2.1, 3.1 and 3.2)
			fail("Algorithms", name, fmt.Errorf("%q is not an asymmetric signature algorithm such as RS256", name))
		}
	}
	switch {
	case cfg.Leeway == 0:
		i.leeway = defaultLeeway
	case cfg.Leeway < 0 || cfg.Leeway > maxLeeway:
		fail("Leeway", cfg.Leeway, fmt.Errorf("%v is not between 0 and %v", cfg.Leeway, maxLeeway))
	}
	var err error
	if v.resource, err = parseResource(cfg.Resource); err != nil {
		fail("Resource", cfg.Resource, err)
	}
	if v.origin, err = parseOrigin(cfg.Origin, v.resource); err != nil {
		fail("Origin", cfg.Origin, err)
	}
	if cfg.RequireBound && cfg.ClientCertificate == nil && cfg.Origin == "" && cfg.Resource == "" {
		fail("RequireBound", true,
			errors.New("requires Origin, Resource or ClientCertificate; otherwise every token is rejected"))
	}
	for _, scope := range cfg.Scopes {
		if !isScope(scope) {
			fail("Scopes", scope, fmt.Errorf("%q is not a scope", scope))
		}
	}
	if !isQuotable(cfg.Realm) {
		fail("Realm", cfg.Realm, fmt.Errorf("%q must be printable ASCII without quotes and backslashes", cfg.Realm))
	}
	if v.log == nil {
		v.log = slog.Default()
	}
	if in := cfg.Introspection; in != nil {
		in.check(fail)
		i.introspect = newIntrospector(*in, cfg.HTTPClient, v.log)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	i.keys = newKeys(cfg.Issuer, cfg.HTTPClient, v.log)
	i.unknown = rate.NewLimiter(rate.Every(coolDown), 1)
	return v, nil
}

// NewMultiVerifier returns a Verifier that accepts the tokens of several
// issuers. The iss claim selects the verifier that checks a token, so that an
// issuer's key never verifies the tokens of another issuer. Tokens that are not
// JWTs go to the verifier with Config.Introspection. All settings that do not
// belong to an issuer, such as Realm, Resource and Origin, are those of the
// first verifier.
//
// The verifiers can still be used by themselves and share their keys with the
// result. It is an error if no verifier given, if two have the same issuer,
// or if two have Introspection.
func NewMultiVerifier(verifiers ...*Verifier) (*Verifier, error) {
	if len(verifiers) == 0 {
		return nil, errors.New("no verifier given")
	}
	first := verifiers[0]
	multi := &Verifier{
		origin: first.origin, certificate: first.certificate, requireBound: first.requireBound,
		resource: first.resource, scopes: first.scopes, realm: first.realm, log: first.log,
	}
	introspecting := 0
	for _, v := range verifiers {
		for _, i := range v.issuers {
			if slices.ContainsFunc(multi.issuers, func(other *issuer) bool { return other.url == i.url }) {
				return nil, fmt.Errorf("issuer %q: two verifiers have it", i.url)
			}
			if i.introspect != nil {
				introspecting++
			}
			multi.issuers = append(multi.issuers, i)
		}
	}
	if introspecting > 1 {
		return nil, errors.New("more than one verifier has Introspection, and opaque tokens do not name their issuer")
	}
	return multi, nil
}

// checkIssuer accepts an issuer identifier of RFC 8414 section 2, and also http
// on a loopback host.
func checkIssuer(raw string) error {
	if raw == "" {
		return errors.New("missing")
	}
	u, err := checkURL(raw, true)
	switch {
	case err != nil:
		return err
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(raw, "#"):
		return fmt.Errorf("%q: an issuer must not have a query or a fragment", raw)
	}
	return nil
}

// checkURL parses the URL of an issuer or of its keys. The scheme must be
// https, or http on a loopback host if plain is set.
func checkURL(raw string, plain bool) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return nil, fmt.Errorf("%q is not a URL such as https://id.example.com", raw)
	case u.Scheme == "https", u.Scheme == "http" && plain && loopback.IsHost(u.Hostname()):
		return u, nil
	case u.Scheme == "http" && plain:
		return nil, fmt.Errorf("%q: http is allowed for loopback hosts only; use https", raw)
	}
	return nil, fmt.Errorf("%q: the scheme must be https", raw)
}

// ErrUnavailable reports that the issuer's keys, or its introspection endpoint,
// were not available. It says nothing about the token: a retry a few seconds
// later may succeed. Test for it with errors.Is.
var ErrUnavailable = jwks.ErrUnavailable

// InvalidTokenError reports why a token is invalid. The client needs another
// token.
type InvalidTokenError struct {
	// Reason is a fixed ASCII text for the client. It contains nothing of the
	// token.
	Reason string
	// Err has the details for the log, or is nil. It may quote shortened
	// claims, but never the token.
	Err error
}

func (e *InvalidTokenError) Error() string {
	if e.Err != nil {
		return "invalid token: " + e.Reason + ": " + e.Err.Error()
	}
	return "invalid token: " + e.Reason
}

func (e *InvalidTokenError) Unwrap() error { return e.Err }

func isInvalid(err error) bool {
	var invalid *InvalidTokenError
	return errors.As(err, &invalid)
}

func invalid(reason string, err error) error { return &InvalidTokenError{reason, err} }

// Verify returns the token that raw encodes if it is valid. Otherwise the error
// is an [*InvalidTokenError] or wraps [ErrUnavailable]. ctx limits only the
// time spent waiting for the issuer. Tokens that are bound to their sender are
// rejected, because the proof is in the request: see [Verifier.VerifyRequest].
func (v *Verifier) Verify(ctx context.Context, raw string) (*Token, error) {
	t, err := v.verify(ctx, raw)
	if err == nil {
		err = v.checkUnbound(t)
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// checkUnbound rejects a token that is bound to its sender, and one that is not
// if it must be.
func (v *Verifier) checkUnbound(t *Token) error {
	switch {
	case t.cnf.bound():
		return invalid("the token is bound to a key and cannot be used as a bearer token", nil)
	case v.requireBound:
		return invalid("the token is not bound to its sender", nil)
	}
	return nil
}

// verify checks everything but the binding of a token to its sender.
func (v *Verifier) verify(ctx context.Context, raw string) (*Token, error) {
	if len(raw) > maxToken {
		return nil, invalid("the token is not a signed JWT in compact form",
			fmt.Errorf("it is longer than %d bytes", maxToken))
	}
	key := hashOf(raw)
	if hit, ok := v.good.get(key); ok {
		if keys, err := hit.issuer.keys.Current(ctx); err != nil {
			return nil, err
		} else if keys == hit.keys {
			return hit.token, nil
		}
	}
	if i := v.introspecting(); i != nil && !looksLikeJWT(raw) {
		return i.introspected(ctx, raw, key)
	}
	jws, err := parse(raw)
	if err != nil {
		return nil, err
	}
	i, err := v.issuerOf(jws)
	if err != nil {
		return nil, err
	}
	if err := i.checkHeader(jws); err != nil {
		return nil, err
	}
	keys, err := i.checkSignature(ctx, jws)
	if err != nil {
		return nil, err
	}
	t, err := i.token(jws.Payload, time.Now())
	if err != nil {
		return nil, err
	}
	v.good.put(key, &goodToken{t, i, keys}, t.Expiry)
	return t, nil
}

// goodToken is a cached token and the keys that verified it.
type goodToken struct {
	token  *Token
	issuer *issuer
	keys   *jwks.Keys
}

// issuerOf returns the issuer whose keys and rules apply to a token.
func (v *Verifier) issuerOf(t *jwks.Token) (*issuer, error) {
	if len(v.issuers) == 1 {
		return v.issuers[0], nil // checkClaims compares its iss
	}
	name, err := issuerNamed(t.Payload)
	if err != nil {
		return nil, invalid("the token's claims cannot be read", err)
	}
	for _, i := range v.issuers {
		if i.url == name {
			return i, nil
		}
	}
	return nil, invalid("the token is from another issuer",
		fmt.Errorf("iss is %.80q, which is not an accepted issuer", name))
}

func (v *Verifier) introspecting() *issuer {
	for _, i := range v.issuers {
		if i.introspect != nil {
			return i
		}
	}
	return nil
}

// maxToken is the maximum length of a token in bytes.
const maxToken = 16 << 10

// looksLikeJWT reports whether raw has the form of a JWT, signed or encrypted.
func looksLikeJWT(raw string) bool { n := strings.Count(raw, "."); return n == 2 || n == 4 }

// parse splits a token and reads its header.
func parse(raw string) (*jwks.Token, error) {
	t, err := split(raw)
	if err != nil {
		return nil, invalid("the token is not a signed JWT in compact form", err)
	}
	if err := t.ReadHeader(); err != nil {
		return nil, invalid("the token's header is not acceptable", err)
	}
	return t, nil
}

// split splits a JWS. It fails if raw is too long.
func split(raw string) (*jwks.Token, error) {
	if len(raw) > maxToken {
		return nil, fmt.Errorf("it is longer than %d bytes", maxToken)
	}
	return jwks.Split(raw)
}

func (i *issuer) checkHeader(t *jwks.Token) error {
	if err := i.checkAlgorithm(t.Algorithm); err != nil {
		return err
	}
	return i.checkType(t.Type)
}

// checkAlgorithm compares alg exactly. none is never accepted (RFC 9068 section
// 4, RFC 8725 section 3.1).
func (i *issuer) checkAlgorithm(alg string) error {
	if !slices.Contains(i.algorithms, alg) {
		return invalid("the token's algorithm is not accepted",
			fmt.Errorf("alg is %.40q, want one of %s", alg, strings.Join(i.algorithms, ", ")))
	}
	return nil
}

// checkType accepts access tokens. Media types are case-insensitive (RFC 7515
// section 4.1.9).
func (i *issuer) checkType(typ string) error {
	short := strings.TrimPrefix(strings.ToLower(typ), "application/")
	if short == "at+jwt" || i.anyType && !strings.HasSuffix(short, "+jwt") {
		return nil
	}
	return invalid("the token is not an access token", fmt.Errorf("typ is %.40q, want at+jwt", typ))
}

// checkSignature verifies the signature and returns the issuer's keys. A token
// without a kid is accepted only if exactly one key fits.
func (i *issuer) checkSignature(ctx context.Context, t *jwks.Token) (*jwks.Keys, error) {
	keys, err := i.keys.Verify(ctx, t, i.unknown)
	if err == nil && t.KeyID == "" && keys.Fitting(t.Algorithm) > 1 {
		err = fmt.Errorf("kid is missing and more than one key fits %s", t.Algorithm)
	}
	switch {
	case errors.Is(err, ErrUnavailable):
		return nil, err
	case err != nil:
		return nil, invalid("the token's signature is not valid", err)
	}
	return keys, nil
}
