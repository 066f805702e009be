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

	"github.com/cloakroom-bff/cloakroom/internal/jwks"
)

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

// NewVerifier returns a Verifier for cfg. It does no I/O. The error joins a
// *ConfigError for every mistake in cfg, such as `Audience: missing`.
func NewVerifier(cfg Config) (*Verifier, error) {
	cfg.setDefaults()
	resource, origin, err := cfg.check()
	if err != nil {
		return nil, err
	}
	i := &issuer{
		url:        cfg.Issuer,
		audience:   cfg.Audience,
		noAudience: cfg.InsecureAllowNoAudience,
		clients:    slices.Clone(cfg.Clients),
		algorithms: slices.Clone(cfg.Algorithms),
		leeway:     cfg.Leeway,
		anyType:    cfg.InsecureAllowAnyType,
		keys:       newKeys(cfg.Issuer, cfg.HTTPClient, cfg.Logger),
		unknown:    rate.NewLimiter(rate.Every(coolDown), 1),
	}
	if cfg.Introspection != nil {
		i.introspect = newIntrospector(*cfg.Introspection, cfg.HTTPClient, cfg.Logger)
	}
	return &Verifier{
		issuers:      []*issuer{i},
		origin:       origin,
		certificate:  cfg.ClientCertificate,
		requireBound: cfg.RequireBound,
		resource:     resource,
		scopes:       slices.Clone(cfg.Scopes),
		realm:        cfg.Realm,
		log:          cfg.Logger,
	}, nil
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
