// Package bearer protects an API with access tokens: JWTs by RFC 9068, sent as bearer tokens by RFC 6750 or bound to their sender by RFC 9449 and RFC 8705.
//
//	verifier, err := bearer.NewVerifier(bearer.Config{Issuer: "https://id.example.com", Audience: "orders"})
//	...
//	mux.Handle("GET /orders", verifier.Handler(bearer.Require("orders:read")(listOrders)))
//
// [Verifier.Handler] answers requests without a good token itself; the handler behind it finds the token with [FromContext]. [Require], [RequireAny],
// [RequireACR] and [RequireFresh] demand more of it. [Verifier.Verify] is the same decision for what is no HTTP request, and [Verifier.Explain] says why it is
// what it is. An API that several issuers write tokens for has a Verifier for each, and makes one of them with [Either].
//
// # What is checked
//
// A token is good when all of this holds; whatever is not listed is not checked.
//
//   - It is a JWS in compact serialization of at most 16 KiB, without crit, b64 or zip. Encrypted tokens are refused.
//   - typ is at+jwt, so that an ID token or a logout token cannot pass for an access token.
//   - alg is one of Config.Algorithms, to the letter, and fits the issuer's key that kid names: its type, and its alg if it has one.
//     A token without a kid is accepted if exactly one key fits. Keys that the token brings or points to are ignored.
//   - The signature is right. Until that is known nothing of the payload counts.
//   - No claim comes twice, and none of those below is in another case. Other claims that differ in case are different claims.
//   - iss is Config.Issuer and aud holds Config.Audience, to the letter.
//   - exp lies ahead, nbf and iat do not, give or take Config.Leeway.
//   - exp, sub, client_id, iat and jti are there, and client_id is one of Config.Clients if there are any.
//   - A token that is bound to a key or a certificate, by cnf, comes with proof of it: see Config.Origin and Config.ClientCertificate.
//
// A token that is no JWT is refused, or looked up with the issuer if there is Config.Introspection.
//
// # What is left to the API
//
// Whether this subject may do this. A token of the client credentials grant speaks for the client alone, and its sub may read like a
// user's: ask [Token.IsClient] before taking Subject for a user.
//
// A list of revoked tokens has to go by Token.Issuer and Token.ID. The token as it was sent is no identity, for an ECDSA signature has a
// second form that is as valid as the first.
//
// # Keys
//
// The keys come from the jwks_uri of the issuer's metadata (OpenID Connect Discovery 1.0 section 4, or RFC 8414 section 3 where there is none). They are fetched with the
// first token, so an issuer that is down does not keep an API from starting. From then on a verification takes no request to the issuer, and does not
// wait for one, with these exceptions:
//
//   - The keys are current for the max-age of their Cache-Control, at least 1 minute and at most 1 hour, or for 10 minutes where it gives
//     none. A token that comes in the last fifth of that starts a fetch in the background. If none came, the next one waits for the fetch.
//     A key that the issuer has withdrawn is thus trusted no longer than that.
//   - If the issuer fails, or answers with a set that has no usable key, the last good keys serve for up to another hour.
//   - A token with an unknown kid starts a fetch, which it waits for, and which all that come meanwhile share; the next such fetch
//     is 30 seconds later at the earliest. Until then an unknown kid is refused at once: as invalid, or with ErrUnavailable if the last fetch failed.
//
// When there are no keys to decide with, the error is [ErrUnavailable], and never an [InvalidTokenError].
//
// The last few thousand tokens that were found good are remembered until they expire or the keys change, so one that comes again and again costs a hash. If it is
// bound, its proof is looked at each time.
package bearer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/cloakroom-bff/cloakroom/internal/jwks"
)

// Config says whose tokens a Verifier accepts, and for whom.
type Config struct {
	// Issuer is the issuer of the tokens as it writes itself, to the character: the iss of its tokens and the issuer of its metadata. It is
	// an https URL, or http where the host is localhost, below .localhost, or a loopback address.
	Issuer string

	// Audience is the identifier of this API, which aud has to hold.
	Audience string

	// Clients are those whose tokens are accepted, by client_id. Empty means all of the issuer's.
	Clients []string

	// Algorithms are the accepted values of alg: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA, Ed25519.
	// EdDSA and Ed25519 are two names for one algorithm (RFC 9864); a token may use only those that are listed.
	// Empty means RS256, PS256, ES256, EdDSA and Ed25519.
	Algorithms []string

	// Leeway is how far the issuer's clock and ours may be apart, at most 60 s. Zero means 30 s.
	Leeway time.Duration

	// InsecureAllowAnyType turns off the demand for typ at+jwt, for an issuer that puts JWT, or nothing, into all it signs. A typ that
	// names another kind of JWT, as logout+jwt does, is still refused, and so is what has the claims of an ID token or a logout token
	// (nonce, at_hash, c_hash, events) or says that it is one (token_use, typ). What is left between an ID token and this API is Audience: it must
	// not be a client's id.
	//
	// Such issuers seldom follow RFC 9068 otherwise, so iat and jti may be missing, azp, cid or appid may stand in for client_id, which may be missing as well,
	// and scp, a string or an array, for scope, which may be an array in any case.
	InsecureAllowAnyType bool

	// InsecureAllowNoAudience accepts tokens without an aud, for an issuer that gives none, as Amazon Cognito does. Clients has to say whose. A token of one of these clients
	// is then good at each API that does the same.
	InsecureAllowNoAudience bool

	// Introspection has the issuer asked about tokens that are no JWTs. Nil means that they are refused.
	Introspection *Introspection

	// Origin is scheme and host of this API as its clients write them, such as https://api.example.com. With it, tokens that are bound to a DPoP key are accepted from
	// who has that key (RFC 9449 section 7), and it has to be right, for the client signs for which URL its proof is. Empty means that of Resource; without either such tokens are refused.
	//
	// That a proof is used once is known within one Verifier. Where several processes serve an API, whoever reads one's traffic can repeat a proof at another for a minute.
	Origin string

	// ClientCertificate returns the certificate that the client of a request has proven to have, or nil. With it, tokens that are bound to a certificate are accepted
	// (RFC 8705 section 3): [PeerCertificate] where this program ends TLS itself. Nil means that they are refused.
	ClientCertificate func(*http.Request) *x509.Certificate

	// RequireBound refuses tokens that are bound to nothing, which whoever gets hold of them can use.
	RequireBound bool

	// Resource is the https URL that identifies this API in its metadata (RFC 9728), which [Verifier.Metadata] serves, and which challenges then point to. Empty means that it has none.
	Resource string

	// Scopes are those that the metadata lists.
	Scopes []string

	// Realm names the protected space in challenges (RFC 9110 section 11.5). Empty means that they name none.
	Realm string

	// HTTPClient fetches the issuer's metadata and keys. Its CheckRedirect is replaced: redirects are followed on the same host only.
	// Nil means http.DefaultTransport. A fetch takes 10 s at most in any case.
	HTTPClient *http.Client

	// Logger is told when the keys cannot be fetched and when they can again, and, at the debug level, why tokens are refused.
	// It is never given a token. Nil means slog.Default().
	Logger *slog.Logger
}

const (
	defaultLeeway = 30 * time.Second
	maxLeeway     = 60 * time.Second
)

var defaultAlgorithms = []string{"RS256", "PS256", "ES256", "EdDSA", "Ed25519"}

// Verifier decides whether tokens are good. It is safe for concurrent use.
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

// issuer is what a Verifier knows of one issuer.
type issuer struct {
	url        string
	audience   string
	noAudience bool // may be missing
	clients    []string
	algorithms []string
	leeway     time.Duration
	anyType    bool
	keys       *jwks.Set
	unknown    *rate.Limiter // of fetches of the keys for the sake of unknown kids
	introspect *introspector // nil: not available
}

// NewVerifier returns a Verifier for cfg. It does no I/O. The error joins everything that is wrong in cfg, a line for each field, as in
// `Audience: missing`.
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
	fail := func(field string, err error) { errs = append(errs, fmt.Errorf("%s: %w", field, err)) }
	if err := checkIssuer(cfg.Issuer); err != nil {
		fail("Issuer", err)
	}
	if cfg.Audience == "" {
		fail("Audience", errors.New("missing"))
	}
	if cfg.InsecureAllowNoAudience && len(cfg.Clients) == 0 {
		fail("Clients", errors.New("missing; with InsecureAllowNoAudience nothing else says whose tokens are for this API"))
	}
	if slices.Contains(cfg.Clients, "") {
		fail("Clients", errors.New("one is empty"))
	}
	if len(cfg.Algorithms) == 0 {
		i.algorithms = defaultAlgorithms
	}
	for _, name := range cfg.Algorithms {
		if !jwks.IsAlgorithm(name) { // none and HMAC among them (RFC 8725 sections 2.1, 3.1 and 3.2)
			fail("Algorithms", fmt.Errorf("%q is not the name of an algorithm with a public key, such as RS256", name))
		}
	}
	switch {
	case cfg.Leeway == 0:
		i.leeway = defaultLeeway
	case cfg.Leeway < 0 || cfg.Leeway > maxLeeway:
		fail("Leeway", fmt.Errorf("%v is not between 0 and %v", cfg.Leeway, maxLeeway))
	}
	var err error
	if v.resource, err = parseResource(cfg.Resource); err != nil {
		fail("Resource", err)
	}
	if v.origin, err = parseOrigin(cfg.Origin, v.resource); err != nil {
		fail("Origin", err)
	}
	if cfg.RequireBound && cfg.ClientCertificate == nil && cfg.Origin == "" && cfg.Resource == "" {
		fail("RequireBound", errors.New("neither Origin nor ClientCertificate is set, so no token at all would be accepted"))
	}
	for _, scope := range cfg.Scopes {
		if !isScope(scope) {
			fail("Scopes", fmt.Errorf("%q is not one scope", scope))
		}
	}
	if !isQuotable(cfg.Realm) {
		fail("Realm", fmt.Errorf("%q has other characters than printable ASCII without quotes and backslashes", cfg.Realm))
	}
	if v.log == nil {
		v.log = slog.Default()
	}
	if in := cfg.Introspection; in != nil {
		if err := in.check(); err != nil {
			fail("Introspection", err)
		}
		i.introspect = newIntrospector(*in, cfg.HTTPClient, v.log)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	i.keys = newKeys(cfg.Issuer, cfg.HTTPClient, v.log)
	i.unknown = rate.NewLimiter(rate.Every(coolDown), 1)
	return v, nil
}

// Either returns a Verifier that accepts what one of verifiers accepts: each token is for the one whose issuer it names, and for no other, whatever keys the issuers have. A token
// that is no JWT is for the one that has Config.Introspection. In all that is not about an issuer, such as Realm, Resource or Origin, it is as the first.
//
// The verifiers go on to share their keys with it. The error says that two have the same issuer, or that two have Introspection.
func Either(verifiers ...*Verifier) (*Verifier, error) {
	if len(verifiers) == 0 {
		return nil, errors.New("there is no verifier")
	}
	first := verifiers[0]
	either := &Verifier{
		origin: first.origin, certificate: first.certificate, requireBound: first.requireBound,
		resource: first.resource, scopes: first.scopes, realm: first.realm, log: first.log,
	}
	asking := 0
	for _, v := range verifiers {
		for _, i := range v.issuers {
			if slices.ContainsFunc(either.issuers, func(other *issuer) bool { return other.url == i.url }) {
				return nil, fmt.Errorf("the issuer %q is there twice", i.url)
			}
			if i.introspect != nil {
				asking++
			}
			either.issuers = append(either.issuers, i)
		}
	}
	if asking > 1 {
		return nil, errors.New("more than one has Introspection, and a token that is no JWT does not say which of them it is for")
	}
	return either, nil
}

// checkIssuer accepts what RFC 8414 section 2 calls an issuer, and plain http on this machine.
func checkIssuer(raw string) error {
	if raw == "" {
		return errors.New("missing")
	}
	u, err := checkURL(raw, true)
	switch {
	case err != nil:
		return err
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(raw, "#"):
		return fmt.Errorf("%q: an issuer has neither query nor fragment", raw)
	}
	return nil
}

// checkURL parses the URL of an issuer or of its keys: https, or http on a loopback host if plain is true.
func checkURL(raw string, plain bool) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return nil, fmt.Errorf("%q is not a URL such as https://id.example.com", raw)
	case u.Scheme == "https", u.Scheme == "http" && plain && isLoopback(u.Hostname()):
		return u, nil
	case u.Scheme == "http" && plain:
		return nil, fmt.Errorf("%q: http is for loopback hosts alone; use https", raw)
	}
	return nil, fmt.Errorf("%q: the scheme has to be https", raw)
}

// isLoopback goes by the name, which RFC 6761 section 6.3 reserves, and not by what it resolves to.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback()
}

// ErrUnavailable says that the issuer's keys could not be had, and nothing about the token: the same request may succeed a
// few seconds later.
var ErrUnavailable = jwks.ErrUnavailable

// InvalidTokenError says why a token is not good. Whoever sent it needs another one.
type InvalidTokenError struct {
	// Reason is for whoever sent the token: fixed words in ASCII, in which nothing of the token occurs.
	Reason string
	// Err is for the log, where there is more to say. It may quote claims, shortened, but never the token. It may be nil.
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

// Verify returns the token that raw encodes, if it is good. Otherwise the error is an [*InvalidTokenError], or wraps [ErrUnavailable].
// It uses ctx only where it has to wait for the issuer. A token that is bound to its sender is refused, for there is nothing here to prove it with: see [Verifier.VerifyRequest].
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

// checkUnbound accepts what is good in anybody's hands.
func (v *Verifier) checkUnbound(t *Token) error {
	switch {
	case t.cnf.bound():
		return invalid("the token is bound to a key and cannot be used as a bearer token", nil)
	case v.requireBound:
		return invalid("the token is not bound to its sender", nil)
	}
	return nil
}

// verify checks all of a token but what it is bound to.
func (v *Verifier) verify(ctx context.Context, raw string) (*Token, error) {
	if len(raw) > maxToken {
		return nil, invalid("the token is not a signed JWT in compact form", fmt.Errorf("it is longer than %d bytes", maxToken))
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

// goodToken is a token that was found good with a set of keys.
type goodToken struct {
	token  *Token
	issuer *issuer
	keys   *jwks.Keys
}

// issuerOf returns the issuer that a token has to be of.
func (v *Verifier) issuerOf(t *jwks.Token) (*issuer, error) {
	if len(v.issuers) == 1 {
		return v.issuers[0], nil // which its iss has to name
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
	return nil, invalid("the token is from another issuer", fmt.Errorf("iss is %.80q, and none of ours", name))
}

func (v *Verifier) introspecting() *issuer {
	for _, i := range v.issuers {
		if i.introspect != nil {
			return i
		}
	}
	return nil
}

// maxToken is the length of the longest token that is looked at.
const maxToken = 16 << 10

// looksLikeJWT reports whether raw has the form of a JWT, signed or encrypted.
func looksLikeJWT(raw string) bool { n := strings.Count(raw, "."); return n == 2 || n == 4 }

// parse takes a token apart, and reads its header.
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

// split takes a JWS apart that is not too long.
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

// checkAlgorithm goes to the letter, and none is never there (RFC 9068 section 4, RFC 8725 section 3.1).
func (i *issuer) checkAlgorithm(alg string) error {
	if !slices.Contains(i.algorithms, alg) {
		return invalid("the token's algorithm is not accepted", fmt.Errorf("alg is %.40q, which is none of %s", alg, strings.Join(i.algorithms, ", ")))
	}
	return nil
}

// checkType lets an access token through. Media types have no case (RFC 7515 section 4.1.9).
func (i *issuer) checkType(typ string) error {
	short := strings.TrimPrefix(strings.ToLower(typ), "application/")
	if short == "at+jwt" || i.anyType && !strings.HasSuffix(short, "+jwt") {
		return nil
	}
	return invalid("the token is not an access token", fmt.Errorf("typ is %.40q, want at+jwt", typ))
}

// checkSignature verifies the signature with the issuer's keys, and returns those.
// A token without a kid is accepted only if it is certain which key it is for.
func (i *issuer) checkSignature(ctx context.Context, t *jwks.Token) (*jwks.Keys, error) {
	keys, err := i.keys.Verify(ctx, t, i.unknown)
	if err == nil && t.KeyID == "" && keys.Fitting(t.Algorithm) > 1 {
		err = fmt.Errorf("there is no kid, and more than one key for %s", t.Algorithm)
	}
	switch {
	case errors.Is(err, ErrUnavailable):
		return nil, err
	case err != nil:
		return nil, invalid("the token's signature is not one of the issuer", err)
	}
	return keys, nil
}
