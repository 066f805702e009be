package oidc

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	goidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/time/rate"

	"github.com/cloakroom-bff/cloakroom/internal/jwks"
	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
	"github.com/cloakroom-bff/cloakroom/session"
)

const (
	// ClockSkew is the tolerated difference between the provider's clock and
	// ours.
	ClockSkew = 90 * time.Second
	// maxIDTokenAge is the maximum age of an ID token from the token endpoint.
	maxIDTokenAge = 10 * time.Minute
)

// Identity holds the claims of a verified ID token.
type Identity struct {
	Issuer   string    // iss
	Subject  string    // sub
	SID      string    // sid; empty: the token has none
	Nonce    string    // nonce, which Client.Exchange has compared with the request
	ACR      string    // acr; empty: the token has none
	AuthTime time.Time // auth_time; zero: the token has none

	SessionExpiry time.Time // when the provider ends the session; zero: unknown

	// User holds the claims that describe the user, as a JSON object. Protocol
	// claims are not among them.
	User json.RawMessage
}

// errKeysUnreachable means that the provider's key set cannot be fetched, or is
// empty. It says nothing about the token.
var errKeysUnreachable error = unavailable("the provider's keys cannot be had")

// errTokenMismatch means that the token is not for this login: another issuer,
// subject, client or nonce, or a signature that is not the provider's.
var errTokenMismatch = errors.New("it is not this login's")

// errClockSkew means that the token is not valid at the time of our clock.
var errClockSkew = errors.New("its times do not fit our clock")

// providerToken is a parsed JWT. Nothing in it has been verified.
type providerToken struct {
	*jwks.Token
	claims strictjson.Object
}

// decisiveClaims must not be ambiguous, such as by another case of a letter.
var decisiveClaims = []string{"iss", "sub", "aud", "azp", "exp", "iat", "nbf", "nonce"}

// parseToken takes a JWT apart whose typ is JWT, the one that is wanted, or
// missing (RFC 8725, section 3.12). It fails if a claim occurs twice.
func parseToken(raw, typ string) (*providerToken, error) {
	t, err := jwks.Split(raw)
	if err != nil {
		return nil, fmt.Errorf("it is not a JWT: %w", err)
	}
	if err := t.ReadHeader(); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	switch short := strings.TrimPrefix(strings.ToLower(t.Type), "application/"); short {
	case "", "jwt", typ:
	default:
		return nil, fmt.Errorf("its typ is %.40q", short)
	}
	claims, err := strictjson.Parse(t.Payload)
	if err == nil {
		err = errors.Join(claims.Unique(), claims.Unambiguous(decisiveClaims...))
	}
	if err != nil {
		return nil, fmt.Errorf("claims: %w", err)
	}
	return &providerToken{t, claims}, nil
}

// namesThisClient reports whether iss is the configured issuer and aud contains
// the client id.
func (t *providerToken) namesThisClient(cfg *Config) bool {
	iss, _ := t.claims.Text("iss")
	aud, _ := t.claims.Texts("aud")
	return iss == cfg.Issuer && slices.Contains(aud, cfg.ClientID)
}

// tokenKeys is the goidc.KeySet for one token.
//
// go-oidc decodes claims with encoding/json, which takes a claim in another
// case for the one it looks for, and fails for the type of a claim that is not
// needed. So it does not see the token, but one with the same algorithm and the
// claims that it decides on.
type tokenKeys struct {
	token *providerToken
	keys  *jwks.Set
	limit *rate.Limiter
	seen  []byte // the claims that go-oidc sees
	err   error  // of the verification
}

func (k *tokenKeys) VerifySignature(ctx context.Context, _ string) ([]byte, error) {
	_, k.err = k.keys.Verify(ctx, k.token.Token, k.limit)
	return k.seen, k.err
}

// verify checks that the provider has signed a token for us: algorithm,
// signature, iss, aud, and exp if that is among more. The claims of more are in
// the result. limit bounds the fetches of the key set for the sake of unknown
// keys.
func (c *Client) verify(
	ctx context.Context, m *metadata, t *providerToken, limit *rate.Limiter, more ...string,
) (*goidc.IDToken, error) {
	if m.keys == nil {
		return nil, fmt.Errorf("%w: the provider's metadata has no jwks_uri", errKeysUnreachable)
	}
	if algorithms := c.algorithms(m); !slices.Contains(algorithms, t.Algorithm) {
		return nil, fmt.Errorf("it is signed with %.40q, and accepted is %q", t.Algorithm, algorithms)
	}
	claims, err := t.seenByGoOIDC(more)
	if err != nil {
		return nil, err
	}
	algorithm := t.Algorithm
	if algorithm == "Ed25519" { // RFC 9864: the new name, which go-oidc does not know
		algorithm = goidc.EdDSA
	}
	keys := &tokenKeys{token: t, keys: m.keys, limit: limit, seen: claims}
	verified, err := goidc.NewVerifier(c.cfg.Issuer, keys, &goidc.Config{
		ClientID:             c.cfg.ClientID,
		SupportedSigningAlgs: []string{algorithm},
		SkipExpiryCheck:      !slices.Contains(more, "exp"),
		Now:                  func() time.Time { return time.Now().Add(-ClockSkew) },
	}).Verify(ctx, encodeSegment(`{"alg":"`+algorithm+`"}`)+"."+encodeSegment(string(claims))+".AA")
	switch expired := (*goidc.TokenExpiredError)(nil); {
	case err == nil:
		return verified, nil
	case errors.Is(keys.err, jwks.ErrUnavailable):
		return nil, fmt.Errorf("%w: %w", errKeysUnreachable, keys.err)
	case errors.Is(keys.err, jwks.ErrUnknownKey): // which proves nothing: the provider may publish it a moment later
		return nil, fmt.Errorf("it is signed with a key that the provider does not publish: %w", keys.err)
	case keys.err != nil:
		return nil, fmt.Errorf("%w: %w", errTokenMismatch, keys.err)
	case errors.As(err, &expired):
		return nil, fmt.Errorf("%w: %w", errClockSkew, err)
	case !t.namesThisClient(&c.cfg):
		return nil, fmt.Errorf("%w: %w", errTokenMismatch, err)
	}
	return nil, err
}

// seenByGoOIDC returns iss, aud and more claims. It fails if one has another
// type than the standard's.
func (t *providerToken) seenByGoOIDC(more []string) ([]byte, error) {
	seen := make(map[string]any)
	for _, name := range append([]string{"iss", "aud"}, more...) {
		var value any
		var err error
		switch name {
		case "aud":
			value, err = t.claims.Texts(name)
		case "exp":
			var at time.Time
			if at, err = t.claims.Date(name); err == nil && at.IsZero() {
				err = errors.New("exp is missing")
			}
			value = at.Unix()
		default:
			value, err = t.claims.Text(name)
		}
		if err != nil {
			return nil, err
		}
		seen[name] = value
	}
	return json.Marshal(seen)
}

func encodeSegment(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// verifyIDToken verifies the ID token of a token response (OpenID Connect Core,
// section 3.1.3.7). It does NOT verify nonce, acr and auth_time, which depend
// on the request.
func (c *Client) verifyIDToken(ctx context.Context, m *metadata, tokens session.Tokens) (*Identity, error) {
	t, err := parseToken(tokens.ID.Reveal(), "jwt")
	if err != nil {
		return nil, fmt.Errorf("ID token: %w", err)
	}
	verified, err := c.verify(ctx, m, t, c.idTokenFetches, "exp", "sub", "nonce", "at_hash")
	if err == nil {
		err = c.checkIDToken(t, verified, tokens.Access)
	}
	if err != nil {
		return nil, fmt.Errorf("ID token: %w", err)
	}
	id := &Identity{Issuer: verified.Issuer, Subject: verified.Subject, Nonce: verified.Nonce}
	// Nothing depends on these unless the login asked for them. Another type
	// than the standard's counts as missing: AD FS writes auth_time as a text.
	id.AuthTime, _ = t.claims.Date("auth_time")
	// OpenID Connect Enterprise Extensions. Some providers send a number of
	// seconds, which as a date is long past: with it every login would fail.
	if end, err := t.claims.Date("session_expiry"); err == nil && end.Year() >= 2001 {
		id.SessionExpiry = end
	} else if err == nil && end.Unix() > 0 {
		c.log.Warn("session_expiry ignored: it is not a time in seconds since 1970", "session_expiry", end.Unix())
	}
	id.SID, _ = t.claims.Text("sid")
	id.ACR, _ = t.claims.Text("acr")
	user := t.claims.Map()
	dropProtocolClaims(user)
	applyMap(c.cfg.ClaimMap, user)
	if err := id.setUser(user); err != nil {
		return nil, fmt.Errorf("ID token: %w", err)
	}
	return id, nil
}

// checkIDToken verifies the claims of a token whose signature, iss, aud and exp
// have been verified.
func (c *Client) checkIDToken(t *providerToken, verified *goidc.IDToken, access session.Secret) error {
	if verified.Issuer != c.cfg.Issuer { // go-oidc makes an exception for Google
		return fmt.Errorf("%w: iss is %q, want %q", errTokenMismatch, verified.Issuer, c.cfg.Issuer)
	}
	for _, aud := range verified.Audience {
		if !c.trusts(aud) { // 3.1.3.7 (3)
			return fmt.Errorf("%w: aud names %q beside us", errTokenMismatch, aud)
		}
	}
	azp, err := t.claims.Text("azp")
	if t.claims.Has("azp") && (err != nil || azp != c.cfg.ClientID) { // 3.1.3.7 (5)
		return fmt.Errorf("%w: azp is %q, want %q", errTokenMismatch, azp, c.cfg.ClientID)
	}
	if sub := verified.Subject; sub == "" || len(sub) > 255 { // Core 2
		return errors.New("sub is missing, or longer than 255 bytes")
	}
	issued, err := t.claims.Date("iat") // 3.1.3.7 (10)
	if err != nil {
		return err
	}
	switch age := time.Since(issued); {
	case issued.IsZero():
		return errors.New("iat is missing")
	case age > maxIDTokenAge:
		return fmt.Errorf("%w: iat is %v ago", errClockSkew, age.Round(time.Second))
	case age < -ClockSkew:
		return fmt.Errorf("%w: iat is %v ahead of our clock", errClockSkew, -age.Round(time.Second))
	}
	notBefore, err := t.claims.Date("nbf")
	if err != nil {
		return err
	}
	if ahead := time.Until(notBefore); ahead > ClockSkew {
		return fmt.Errorf("%w: nbf is %v ahead of our clock", errClockSkew, ahead.Round(time.Second))
	}
	if verified.AccessTokenHash != "" { // 3.1.3.8
		if err := verified.VerifyAccessToken(access.Reveal()); err != nil {
			return fmt.Errorf("at_hash: %w", err)
		}
	}
	if t.claims.Has("events") { // a logout token, which is signed with the same keys
		return errors.New("it has the claim events of a logout token")
	}
	return nil
}

// maxClaims is the maximum size of a user's claims, in bytes of JSON. They are
// stored in each session, never in a cookie.
const maxClaims = 64 << 10

// setUser stores the claims in id.User. It fails if they exceed maxClaims.
func (id *Identity) setUser(claims map[string]any) error {
	b, err := json.Marshal(claims)
	if err != nil {
		return err
	}
	if len(b) > maxClaims {
		return fmt.Errorf("the user's claims are %d bytes; %d are the limit", len(b), maxClaims)
	}
	id.User = b
	return nil
}

// checkNonce verifies that an ID token is for this request (3.1.3.7 (11)).
func (r *Request) checkNonce(id *Identity) error {
	if id.Nonce == "" || subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(r.Nonce)) != 1 {
		return errors.New("ID token: nonce is not the one that was sent")
	}
	return nil
}

// algorithms returns the signature algorithms that are accepted. Neither none
// nor HMAC is ever among them.
func (c *Client) algorithms(m *metadata) []string {
	switch {
	case c.cfg.IDTokenAlg != "":
		return []string{c.cfg.IDTokenAlg}
	case c.cfg.FAPI2:
		return fapi2Algorithms
	}
	var known []string
	for _, alg := range m.IDTokenAlgorithms {
		if jwks.IsAlgorithm(alg) {
			known = append(known, alg)
		}
	}
	if len(known) == 0 { // Core 2
		return []string{goidc.RS256}
	}
	return known
}

// fapi2Algorithms are those of the FAPI 2.0 Security Profile, section 5.4.
var fapi2Algorithms = []string{goidc.PS256, goidc.ES256, goidc.EdDSA, "Ed25519"}

// checkIDTokenAlg checks IDTokenAlg.
func checkIDTokenAlg(cfg *Config) error {
	switch alg := cfg.IDTokenAlg; {
	case alg == "":
	case !jwks.IsAlgorithm(alg):
		return fmt.Errorf("%q is not the name of an algorithm with a public key, such as RS256 or ES256", alg)
	case cfg.FAPI2 && !slices.Contains(fapi2Algorithms, alg):
		return fmt.Errorf("%s is not for FAPI 2.0, which takes %s", alg, strings.Join(fapi2Algorithms, ", "))
	}
	return nil
}

// matchesSession verifies that the ID token of a refresh is for the session
// that was refreshed (OpenID Connect Core, section 12.2).
func (id *Identity) matchesSession(s *session.Session) error {
	switch {
	case id.Issuer != s.Issuer || id.Subject != s.Subject:
		return fmt.Errorf("%w: it is for another subject", errTokenMismatch)
	case id.Nonce != "" && id.Nonce != nonceIn(s.Tokens.ID):
		return fmt.Errorf("%w: it has another nonce", errTokenMismatch)
	}
	return nil
}

// nonceIn returns the nonce of an ID token that was verified when it was
// received.
func nonceIn(raw session.Secret) string {
	t, err := parseToken(raw.Reveal(), "jwt")
	if err != nil {
		return ""
	}
	nonce, _ := t.claims.Text("nonce")
	return nonce
}

// renewedClaims returns the user's claims after a refresh. Nil means that those
// of the session stay. The claims in signInClaims never change: if the user has
// signed in again since, then not for this session.
func (c *Client) renewedClaims(ctx context.Context, m *metadata, s *session.Session, tokens session.Tokens,
	id *Identity) json.RawMessage {
	if c.cfg.UserInfo {
		if err := c.addUserInfo(ctx, m, tokens, id); err != nil {
			level := slog.LevelWarn
			if errors.Is(err, ErrUnavailable) { // the outage is logged once, not for each session
				level = slog.LevelDebug
			}
			c.log.LogAttrs(ctx, level, "claims not refreshed; those before are kept",
				slog.String("session", s.ID), slog.Any("err", err))
			return nil
		}
	}
	user, err := strictjson.Parse(id.User)
	if err != nil {
		return nil
	}
	claims := user.Map()
	for _, name := range signInClaims {
		delete(claims, name)
		if before := s.Claim(name); before != nil {
			claims[name] = before
		}
	}
	if err := id.setUser(claims); err != nil {
		c.log.WarnContext(ctx, "claims not refreshed; those before are kept", "session", s.ID, "err", err)
		return nil
	}
	return id.User
}

// signInClaims describe when and how the user signed in.
var signInClaims = []string{"auth_time", "acr", "amr"}
