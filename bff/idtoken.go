package bff

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/cloakroom-bff/cloakroom/session"
)

const (
	// clockSkew is how far the provider's clock and ours may be apart.
	clockSkew = 90 * time.Second
	// maxIDTokenAge is how old an ID token may be that comes straight from the token endpoint.
	maxIDTokenAge = 10 * time.Minute
)

// idToken is what is believed of a verified ID token.
type idToken struct {
	Issuer   string
	Subject  string
	SID      string
	Nonce    string
	ACR      string
	AuthTime time.Time // zero: not said

	SessionExpiry time.Time // when the provider ends the session; zero: not said

	// User holds the claims that speak of the user, without those of the protocol.
	User json.RawMessage
}

// errKeysUnreachable says that the provider's key set could not be had, and so nothing about the token.
var errKeysUnreachable = errors.New("the provider's keys cannot be had")

// errForeign says that the token is for somebody else, or of somebody else: for another subject or client, of another issuer or login, or not signed by ours.
var errForeign = errors.New("it is not this login's")

// errClock says that the token may be right, but not by our clock.
var errClock = errors.New("its times do not fit our clock")

// verifyIDToken checks the ID token among tokens by OpenID Connect Core 3.1.3.7. What depends on the login, the nonce, acr and
// auth_time, is checked by attempt.satisfiedBy.
func (p *provider) verifyIDToken(ctx context.Context, m *metadata, tokens session.Tokens) (*idToken, error) {
	raw := tokens.ID.Reveal()
	if err := checkTokenType(raw, "jwt"); err != nil {
		return nil, fmt.Errorf("ID token: %w", err)
	}
	keys := &keySet{KeySet: m.keys}
	verified, err := p.verifier(m, keys).Verify(ctx, raw)
	if keys.unreachable != nil {
		return nil, fmt.Errorf("ID token: %w: %w", errKeysUnreachable, keys.unreachable)
	}
	if keys.current {
		return nil, fmt.Errorf("ID token: %w: %w", errKeysCurrent, err)
	}
	if expired := (*oidc.TokenExpiredError)(nil); errors.As(err, &expired) {
		return nil, fmt.Errorf("ID token: %w: %w", errClock, err)
	}
	if err != nil {
		if keys.wrong || !p.isForUs(raw) {
			err = fmt.Errorf("%w: %w", errForeign, err)
		}
		return nil, fmt.Errorf("ID token: %w", err)
	}

	claims, err := claimsOf(verified)
	if err != nil {
		return nil, fmt.Errorf("ID token: %w", err)
	}
	if verified.Issuer != p.cfg.Issuer {
		return nil, fmt.Errorf("ID token: %w: iss is %q, want %q", errForeign, verified.Issuer, p.cfg.Issuer)
	}
	for _, aud := range verified.Audience {
		if !p.trusts(aud) { // 3.1.3.7 (3)
			return nil, fmt.Errorf("ID token: %w: aud names %q beside us", errForeign, aud)
		}
	}
	if azp, ok := claims["azp"]; ok && azp != p.cfg.ClientID { // 3.1.3.7 (5)
		return nil, fmt.Errorf("ID token: %w: azp is %v, want %q", errForeign, azp, p.cfg.ClientID)
	}
	if sub := verified.Subject; sub == "" || len(sub) > 255 || !utf8.ValidString(sub) { // Core 2
		return nil, errors.New("ID token: sub is missing, or longer than 255 bytes")
	}
	if _, err := timeClaim(claims, "exp"); err != nil { // the verifier also reads one in quotes
		return nil, fmt.Errorf("ID token: %w", err)
	}
	issued, err := timeClaim(claims, "iat") // 3.1.3.7 (10)
	if err != nil {
		return nil, fmt.Errorf("ID token: %w", err)
	}
	switch age := time.Since(issued); {
	case issued.IsZero():
		return nil, errors.New("ID token: iat is missing")
	case age > maxIDTokenAge:
		return nil, fmt.Errorf("ID token: %w: iat is %v ago", errClock, age.Round(time.Second))
	case age < -clockSkew:
		return nil, fmt.Errorf("ID token: %w: iat is %v ahead of our clock", errClock, -age.Round(time.Second))
	}
	if notBefore, err := timeClaim(claims, "nbf"); err != nil {
		return nil, fmt.Errorf("ID token: %w", err)
	} else if time.Until(notBefore) > clockSkew {
		return nil, fmt.Errorf("ID token: %w: nbf is %v ahead of our clock", errClock, time.Until(notBefore).Round(time.Second))
	}
	if verified.AccessTokenHash != "" { // 3.1.3.8
		if err := verified.VerifyAccessToken(tokens.Access.Reveal()); err != nil {
			return nil, fmt.Errorf("ID token: at_hash: %w", err)
		}
	}
	if _, ok := claims["events"]; ok { // a logout token, which is signed with the same keys
		return nil, errors.New("ID token: it has the claim events of a logout token")
	}

	id := &idToken{Issuer: verified.Issuer, Subject: verified.Subject, Nonce: verified.Nonce}
	if id.AuthTime, err = timeClaim(claims, "auth_time"); err != nil {
		return nil, fmt.Errorf("ID token: %w", err)
	}
	id.SessionExpiry = sessionExpiry(claims)
	id.SID, _ = claims["sid"].(string)
	id.ACR, _ = claims["acr"].(string)
	ofUser(claims)
	p.claims.add(claims)
	if err := id.setUser(claims); err != nil {
		return nil, fmt.Errorf("ID token: %w", err)
	}
	return id, nil
}

// maxClaims is how many bytes of JSON the claims of a user may be. They are in each session, and none of them in a cookie.
const maxClaims = 64 << 10

func (id *idToken) setUser(claims map[string]any) error {
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

// isForUs says whether a token, of which nothing is believed, names our issuer and us; what cannot be read does not say otherwise.
func (p *provider) isForUs(raw string) bool {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return true
	}
	claims, err := decodeClaims(parts[1])
	if err != nil {
		return true
	}
	aud := claimTexts(claims["aud"])
	return claims["iss"] == p.cfg.Issuer && slices.Contains(aud, p.cfg.ClientID)
}

// satisfiedBy says whether the ID token is for this attempt, and whether the user signed in as it asked.
func (a *attempt) satisfiedBy(id *idToken) error {
	if id.Nonce == "" || subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(a.Nonce)) != 1 { // 3.1.3.7 (11)
		return errLoginInvalid.because(errors.New("ID token: nonce is not the one that was sent"))
	}
	if a.ACRValues != "" && !slices.Contains(strings.Fields(a.ACRValues), id.ACR) { // 3.1.3.7 (12)
		return errLoginTooWeak.because(fmt.Errorf("ID token: acr is %q, asked for was %q", id.ACR, a.ACRValues))
	}
	if a.MaxAge != "" { // 3.1.3.7 (13)
		if id.AuthTime.IsZero() {
			return errLoginInvalid.because(errors.New("ID token: auth_time is missing, and max_age was sent"))
		}
		seconds, _ := strconv.Atoi(a.MaxAge)
		if age := time.Since(id.AuthTime); age > time.Duration(seconds)*time.Second+clockSkew {
			return errAuthTooOld
		}
	}
	return nil
}

// errAuthTooOld says that the user signed in at the provider longer ago than max_age allows.
var errAuthTooOld = errLoginTooWeak.because(errors.New("ID token: auth_time is longer ago than max_age"))

// keySet notices whether a signature could not be checked because the keys could not be had, or were had a moment ago, which the verifier does not
// pass on.
type keySet struct {
	oidc.KeySet
	unreachable error
	current     bool // the keys were fetched a moment ago
	wrong       bool // none of the keys has made the signature
}

func (k *keySet) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	payload, err := k.KeySet.VerifySignature(ctx, jwt)
	if k.current = errors.Is(err, errKeysCurrent); !k.current {
		k.unreachable = errors.Unwrap(err) // a signature that does not fit wraps nothing; the errors of the fetch are wrapped
	}
	k.wrong = err != nil && !k.current && k.unreachable == nil
	if err == nil {
		err = checkRSASize(jwt)
	}
	return payload, err
}

// checkRSASize refuses what a small RSA key has signed (RFC 7518 3.3, FAPI 2.0 5.4): a signature is as long as its key.
func checkRSASize(verified string) error {
	parts := strings.Split(verified, ".")
	var header struct {
		Algorithm string `json:"alg"`
	}
	protected, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err == nil {
		err = json.Unmarshal(protected, &header)
	}
	if err != nil {
		return err
	}
	bits := 8 * base64.RawURLEncoding.DecodedLen(len(parts[2]))
	if rsa := strings.HasPrefix(header.Algorithm, "RS") || strings.HasPrefix(header.Algorithm, "PS"); rsa && bits < 2048 {
		return fmt.Errorf("its RSA key has %d bits; 2048 are needed", bits)
	}
	return nil
}

// algorithms are those that the provider may sign with what it says to us.
func (p *provider) algorithms(m *metadata) []string {
	if p.cfg.FAPI2 { // 5.4
		return []string{oidc.PS256, oidc.ES256, oidc.EdDSA}
	}
	return asymmetric(m.IDTokenAlgorithms)
}

// asymmetric returns those of the algorithms that verify with a public key; RS256 where the provider names none (Core 2).
func asymmetric(algorithms []string) []string {
	all := []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA}
	var known []string
	for _, a := range algorithms {
		if slices.Contains(all, a) {
			known = append(known, a)
		}
	}
	if len(known) == 0 {
		return []string{oidc.RS256}
	}
	return known
}

// continues says whether the ID token of a refresh is one for the session that was refreshed (OpenID Connect Core 12.2).
func (id *idToken) continues(s *session.Session) error {
	switch {
	case id.Issuer != s.Issuer || id.Subject != s.Subject:
		return fmt.Errorf("%w: it is for another subject", errForeign)
	case id.Nonce != "" && id.Nonce != nonceIn(s.Tokens.ID):
		return fmt.Errorf("%w: it has another nonce", errForeign)
	}
	return nil
}

// nonceIn returns the nonce of an ID token that was verified when it came.
func nonceIn(raw session.Secret) string {
	parts := strings.Split(raw.Reveal(), ".")
	if len(parts) != 3 {
		return ""
	}
	claims, err := decodeClaims(parts[1])
	if err != nil {
		return ""
	}
	nonce, _ := claims["nonce"].(string)
	return nonce
}

// renewedClaims returns what the session is to say of the user after a refresh; nil: what it says already. When and how the user signed in stays
// what it was: if they have done so anew since, in another app say, then not in this session.
func (p *provider) renewedClaims(ctx context.Context, m *metadata, s *session.Session, tokens session.Tokens, id *idToken) json.RawMessage {
	if p.cfg.UserInfo {
		if err := p.addUserInfo(ctx, m, tokens, id); err != nil {
			p.log.WarnContext(ctx, "claims not refreshed; those before are kept", "session", s.ID, "err", err)
			return nil
		}
	}
	claims, err := parseObject(id.User)
	if err != nil {
		return nil
	}
	for _, name := range signInClaims {
		delete(claims, name)
		if before := s.Claim(name); before != nil {
			claims[name] = before
		}
	}
	if err := id.setUser(claims); err != nil {
		p.log.WarnContext(ctx, "claims not refreshed; those before are kept", "session", s.ID, "err", err)
		return nil
	}
	return id.User
}

// signInClaims say when and how the user signed in.
var signInClaims = []string{"auth_time", "acr", "amr"}

// errNotAJWT says that what came in the place of a JWT is none.
var errNotAJWT = errors.New("it is not a JWT")

// checkTokenType refuses a JWT whose typ says that it is something else than what is wanted (RFC 8725 3.12). One without a typ, or just with JWT, does not say.
func checkTokenType(raw, want string) error {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return errNotAJWT
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil {
		return errNotAJWT
	}
	var header struct {
		Type      string `json:"typ"`
		Algorithm string `json:"alg"`
	}
	if err := json.Unmarshal(b, &header); err != nil || header.Algorithm == "" {
		return fmt.Errorf("%w: it has no header", errNotAJWT)
	}
	if _, err := decodeClaims(parts[1]); err != nil {
		return fmt.Errorf("%w: it has no claims", errNotAJWT)
	}
	switch typ := strings.TrimPrefix(strings.ToLower(header.Type), "application/"); typ {
	case "", "jwt", want:
		return nil
	default:
		return fmt.Errorf("its typ is %.40q", typ)
	}
}

// parseObject reads a JSON object that means one thing only: a name that comes twice, or in two cases, is refused, for readers
// differ in which they take.
func parseObject(payload []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	claims := make(map[string]any)
	seen := make(map[string]bool)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string)
		if folded := strings.ToLower(name); seen[folded] {
			return nil, fmt.Errorf("its member %.40q comes twice", name)
		} else {
			seen[folded] = true
		}
		var value any
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		claims[name] = value
	}
	if _, err := d.Token(); err != nil { // the end of the object
		return nil, fmt.Errorf("it is cut short: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("there is something after it")
	}
	return claims, nil
}

// claimsOf reads the claims of a token that was verified.
func claimsOf(verified interface{ Claims(v any) error }) (map[string]any, error) {
	var payload json.RawMessage
	if err := verified.Claims(&payload); err != nil {
		return nil, err
	}
	return parseObject(payload)
}

// decodeClaims reads the claims of a JWT that was verified before.
func decodeClaims(encoded string) (map[string]any, error) {
	payload, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return nil, err
	}
	return parseObject(payload)
}

// timeClaim reads a NumericDate (RFC 7519 2); zero when it is not there.
func timeClaim(claims map[string]any, name string) (time.Time, error) {
	value, ok := claims[name]
	if !ok || value == nil {
		return time.Time{}, nil
	}
	number, _ := value.(json.Number)
	seconds, err := number.Float64()
	if err != nil || seconds < 0 || seconds > 1e11 {
		return time.Time{}, fmt.Errorf("%s is not a date", name)
	}
	return time.Unix(int64(seconds), 0), nil
}
