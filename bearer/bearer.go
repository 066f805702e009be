// Package bearer protects an API with the access tokens of one issuer: JWTs by RFC 9068, sent as bearer tokens by RFC 6750.
//
//	verifier, err := bearer.NewVerifier(bearer.Config{Issuer: "https://id.example.com", Audience: "orders"})
//	...
//	mux.Handle("GET /orders", verifier.Handler(bearer.RequireScope("orders:read")(listOrders)))
//
// [Verifier.Handler] answers requests without a good token itself; the handler behind it finds the token with [FromContext].
// [Verifier.Verify] is the same decision for what is no HTTP request.
//
// # What is checked
//
// A token is good when all of this holds; whatever is not listed is not checked.
//
//   - It is a JWS in compact serialization of at most 16 KiB, without crit, b64 or zip. Encrypted tokens are refused.
//   - typ is at+jwt, so that an ID token or a logout token cannot pass for an access token.
//   - alg is one of Config.Algorithms, to the letter, and fits the issuer's key that kid names: its type, and its alg if it has one.
//     A token without a kid is accepted if exactly one key fits. Keys that the token brings or points to are ignored.
//   - The signature is right. Nothing of the payload is read before that.
//   - No claim comes twice, not even in another case, and none of those below is in another case.
//   - iss is Config.Issuer and aud holds Config.Audience, to the letter.
//   - exp lies ahead, nbf and iat do not, give or take Config.Leeway.
//   - exp, sub, client_id, iat and jti are there.
//   - cnf is not: a token bound to a key (RFC 8705, RFC 9449) is more than a bearer token, and refused as one.
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
// The keys come from the jwks_uri of the issuer's metadata (OpenID Connect Discovery 1.0 section 4). They are fetched with the first token, so an
// issuer that is down does not keep an API from starting. From then on a verification takes no request to the issuer, and does not
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
package bearer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config says whose tokens a Verifier accepts, and for whom.
type Config struct {
	// Issuer is the issuer of the tokens as it writes itself, to the character: the iss of its tokens and the issuer of its metadata. It is
	// an https URL, or http where the host is localhost, below .localhost, or a loopback address.
	Issuer string

	// Audience is the identifier of this API, which aud has to hold.
	Audience string

	// Algorithms are the accepted values of alg: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA, Ed25519.
	// EdDSA and Ed25519 are two names for one algorithm (RFC 9864); a token may use only those that are listed.
	// Empty means RS256, PS256, ES256, EdDSA and Ed25519.
	Algorithms []string

	// Leeway is how far the issuer's clock and ours may be apart, at most 60 s. Zero means 30 s.
	Leeway time.Duration

	// InsecureAllowAnyType turns off the demand for typ at+jwt, for an issuer that puts JWT, or nothing, into all it signs. A typ that
	// names another kind of JWT, as logout+jwt does, is still refused, and so is what has the claims of an ID token or a logout token
	// (nonce, at_hash, c_hash, events). What is left between an ID token and this API is Audience: it must not be a client's id.
	// Such issuers seldom follow RFC 9068 otherwise, so client_id, iat and jti may be missing, and azp may stand in for client_id.
	InsecureAllowAnyType bool

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
	issuer     string
	audience   string
	algorithms []string
	leeway     time.Duration
	anyType    bool
	realm      string
	keys       *remoteKeys
	log        *slog.Logger
}

// NewVerifier returns a Verifier for cfg. It does no I/O. The error joins everything that is wrong in cfg, a line for each field, as in
// `Audience: missing`.
func NewVerifier(cfg Config) (*Verifier, error) {
	v := &Verifier{
		issuer:     cfg.Issuer,
		audience:   cfg.Audience,
		algorithms: slices.Clone(cfg.Algorithms),
		leeway:     cfg.Leeway,
		anyType:    cfg.InsecureAllowAnyType,
		realm:      cfg.Realm,
		log:        cfg.Logger,
	}
	var errs []error
	fail := func(field string, err error) { errs = append(errs, fmt.Errorf("%s: %w", field, err)) }
	if err := checkIssuer(cfg.Issuer); err != nil {
		fail("Issuer", err)
	}
	if cfg.Audience == "" {
		fail("Audience", errors.New("missing"))
	}
	if len(cfg.Algorithms) == 0 {
		v.algorithms = defaultAlgorithms
	}
	for _, name := range cfg.Algorithms {
		if _, ok := algorithms[name]; !ok { // none and HMAC among them (RFC 8725 sections 2.1, 3.1 and 3.2)
			fail("Algorithms", fmt.Errorf("%q is not the name of an algorithm with a public key, such as RS256", name))
		}
	}
	switch {
	case cfg.Leeway == 0:
		v.leeway = defaultLeeway
	case cfg.Leeway < 0 || cfg.Leeway > maxLeeway:
		fail("Leeway", fmt.Errorf("%v is not between 0 and %v", cfg.Leeway, maxLeeway))
	}
	if strings.ContainsFunc(cfg.Realm, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
		fail("Realm", fmt.Errorf("%q has other characters than printable ASCII without quotes and backslashes", cfg.Realm))
	}
	if v.log == nil {
		v.log = slog.Default()
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	v.keys = newRemoteKeys(cfg.Issuer, cfg.HTTPClient, v.log)
	return v, nil
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
var ErrUnavailable = errors.New("the issuer's keys cannot be had")

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

func invalid(reason string, err error) error { return &InvalidTokenError{reason, err} }

// Token is an access token that was found good. Those who share one must not change it.
type Token struct {
	Issuer   string
	Subject  string   // who it speaks for: a user, or the client itself (see IsClient)
	ClientID string   // who asked for it
	Audience []string // the APIs it is for, this one among them
	Scopes   []string // what it allows; nil if it has no scope
	Expiry   time.Time
	IssuedAt time.Time // zero only with InsecureAllowAnyType
	ID       string    // jti, unique with its issuer; empty only with InsecureAllowAnyType
	Claims   Claims    // all of them, those above included
}

// HasScope says whether the token has the scope, to the letter.
func (t *Token) HasScope(scope string) bool { return slices.Contains(t.Scopes, scope) }

// IsClient says whether the token speaks for the client itself and for no user, which is when sub and client_id are equal (RFC 9068
// section 2.2). A client can be registered under what is also a user's sub, so ask before looking a user up (section 5). An issuer that needs
// InsecureAllowAnyType may give a client's tokens another sub, and then this cannot tell.
func (t *Token) IsClient() bool { return t.Subject == t.ClientID }

// Claims is the JSON object of a token's claims, as the issuer wrote it.
type Claims []byte

// Decode stores the claims in v as [json.Unmarshal] does, which takes a name in another case for the one it looks for. That makes no difference for the
// claims that Token has fields for, and there are never two to choose from: such a token would have been refused.
func (c Claims) Decode(v any) error { return json.Unmarshal(c, v) }

// Verify returns the token that raw encodes, if it is good. Otherwise the error is an [*InvalidTokenError], or wraps [ErrUnavailable].
// It uses ctx only where it has to wait for the issuer's keys.
func (v *Verifier) Verify(ctx context.Context, raw string) (*Token, error) {
	jws, err := parseJWS(raw)
	if err != nil {
		return nil, invalid("the token is not a signed JWT in compact form", err)
	}
	header, err := parseHeader(jws.header)
	if err != nil {
		return nil, invalid("the token's header is not acceptable", err)
	}
	if !slices.Contains(v.algorithms, header.alg) { // RFC 9068 section 4, RFC 8725 section 3.1: to the letter, and none is never there
		return nil, invalid("the token's algorithm is not accepted", fmt.Errorf("alg is %.40q", header.alg))
	}
	if !v.accepts(header.typ) {
		return nil, invalid("the token is not an access token", fmt.Errorf("typ is %.40q", header.typ))
	}
	if err := v.checkSignature(ctx, header, jws); err != nil {
		return nil, err
	}
	return v.token(jws.payload)
}

// accepts says whether typ is one of an access token. Media types have no case (RFC 7515 section 4.1.9).
func (v *Verifier) accepts(typ string) bool {
	typ = strings.TrimPrefix(strings.ToLower(typ), "application/")
	return typ == "at+jwt" || v.anyType && !strings.HasSuffix(typ, "+jwt")
}

// checkSignature looks for the signing key among the keys at hand, and once more among the issuer's current ones if it is not there.
func (v *Verifier) checkSignature(ctx context.Context, h header, j *jws) error {
	set, latest, err := v.keys.current(ctx)
	if err != nil {
		return err
	}
	err = set.verify(h, j)
	if errors.Is(err, errUnknownKey) && !latest { // OpenID Connect Core 1.0 section 10.1.1: the issuer rotates its keys as it likes
		if set, err = v.keys.newer(ctx, set); err != nil {
			return err
		}
		err = set.verify(h, j)
	}
	if err != nil {
		return invalid("the token's signature is not one of the issuer", err)
	}
	return nil
}

// claimsRead are the claims that token reads. None may be there in another case alone: token would miss it, and Claims.Decode would not.
var claimsRead = []string{"iss", "sub", "client_id", "azp", "aud", "scope", "exp", "nbf", "iat", "jti", "nonce", "at_hash", "c_hash", "events", "cnf"}

// token reads claims whose signature is right, and checks them (RFC 9068 section 4).
func (v *Verifier) token(payload []byte) (*Token, error) {
	t := &Token{Claims: payload}
	var (
		notBefore time.Time
		azp       string
		other     string // a claim of other kinds of JWT
		bound     bool
	)
	err := members(payload, func(name, value []byte) (err error) {
		switch string(name) {
		case "iss":
			t.Issuer, err = text(value)
		case "sub":
			t.Subject, err = text(value)
		case "client_id":
			t.ClientID, err = text(value)
		case "azp":
			azp, err = text(value)
		case "aud":
			t.Audience, err = texts(value)
		case "scope":
			var scope string
			scope, err = text(value)
			t.Scopes = splitScope(scope)
		case "exp":
			t.Expiry, err = date(value)
		case "nbf":
			notBefore, err = date(value)
		case "iat":
			t.IssuedAt, err = date(value)
		case "jti":
			t.ID, err = text(value)
		case "nonce", "at_hash", "c_hash", "events":
			other = string(name)
		case "cnf":
			bound = true
		default:
			for _, known := range claimsRead {
				if strings.EqualFold(known, string(name)) {
					return fmt.Errorf("%.40q is in another case than %s", name, known)
				}
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return nil, invalid("the token's claims cannot be read", err)
	}
	if v.anyType {
		if other != "" {
			return nil, invalid("the token is not an access token", fmt.Errorf("it has the claim %s", other))
		}
		if t.ClientID == "" {
			t.ClientID = azp
		}
	}

	now := time.Now()
	switch {
	case t.Issuer != v.issuer:
		return nil, invalid("the token is from another issuer", fmt.Errorf("iss is %.80q, want %q", t.Issuer, v.issuer))
	case !slices.Contains(t.Audience, v.audience):
		return nil, invalid("the token is for another audience", fmt.Errorf("aud is %s, want %q", shorten(t.Audience), v.audience))
	case t.Expiry.IsZero():
		return nil, invalid("the token lacks a claim", errors.New("exp is missing"))
	case !now.Before(t.Expiry.Add(v.leeway)):
		return nil, invalid("the token has expired", fmt.Errorf("exp is %v", t.Expiry.UTC()))
	case now.Before(notBefore.Add(-v.leeway)):
		return nil, invalid("the token is not valid yet", fmt.Errorf("nbf is %v", notBefore.UTC()))
	case now.Before(t.IssuedAt.Add(-v.leeway)):
		return nil, invalid("the token is not valid yet", fmt.Errorf("iat is %v", t.IssuedAt.UTC()))
	case bound:
		return nil, invalid("the token is bound to a key and cannot be used as a bearer token", nil)
	case t.Subject == "":
		return nil, invalid("the token lacks a claim", errors.New("sub is missing"))
	case v.anyType: // and the rest may be missing
	case t.ClientID == "":
		return nil, invalid("the token lacks a claim", errors.New("client_id is missing"))
	case t.IssuedAt.IsZero():
		return nil, invalid("the token lacks a claim", errors.New("iat is missing"))
	case t.ID == "":
		return nil, invalid("the token lacks a claim", errors.New("jti is missing"))
	}
	return t, nil
}

// splitScope splits at spaces alone, as RFC 6749 section 3.3 has it, and not at what Unicode takes for one.
func splitScope(scope string) []string {
	return strings.FieldsFunc(scope, func(c rune) bool { return c == ' ' })
}

func shorten(audience []string) string {
	const most = 80
	s := strconv.Quote(strings.Join(audience, " "))
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}
