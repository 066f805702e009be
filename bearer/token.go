package bearer

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
)

// Token is a valid access token. Tokens are cached and shared: do not modify
// one.
type Token struct {
	Issuer   string
	Subject  string   // the user, or the client itself (see IsClient)
	ClientID string   // the client that requested it; empty only with InsecureAllowAnyType or Introspection
	Audience []string // the APIs it is for, including this one
	Scopes   []string // nil if it has none
	Expiry   time.Time
	IssuedAt time.Time // zero only with InsecureAllowAnyType or Introspection
	ID       string    // jti, unique per issuer; empty only with InsecureAllowAnyType or Introspection
	ACR      string    // how the user signed in (RFC 9470 section 6); may be empty
	AuthTime time.Time // when the user signed in; zero if unknown
	Claims   Claims    // all claims, including those above

	notBefore time.Time
	foreign   string // a claim that marks another kind of JWT; empty: none
	cnf       confirmation
}

// HasScope reports whether the token has the scope. It compares exactly.
func (t *Token) HasScope(scope string) bool { return slices.Contains(t.Scopes, scope) }

// IsClient reports whether the token represents the client itself and not a
// user: sub equals client_id (RFC 9068 section 2.2). A client may be registered
// under an id that is also a user's sub, so call IsClient before looking up a
// user (RFC 9068 section 5). An issuer that needs InsecureAllowAnyType may use
// another sub for clients; IsClient cannot detect that.
func (t *Token) IsClient() bool { return t.Subject == t.ClientID }

// Claims is the JSON object of a token's claims, as sent by the issuer.
type Claims []byte

// Decode decodes the claims into v with [json.Unmarshal], which matches names
// regardless of case. That is safe for the claims in Token's fields: a token
// with one of these in another case is rejected. Decode fails if two names
// differ only in case, such as roles and Roles, because the match would be
// ambiguous. Text and List compare names exactly.
func (c Claims) Decode(v any) error {
	var names []string
	collect := func(name, _ []byte) error {
		names = append(names, string(name))
		return nil
	}
	if err := strictjson.Members(c, nil, collect); err != nil {
		return err
	}
	if err := strictjson.Members(c, names, func(_, _ []byte) error { return nil }); err != nil {
		return err
	}
	return json.Unmarshal(c, v)
}

// Text returns the string at a path of names: Text("tenant") is the claim
// tenant, Text("address", "country") a member of the claim address. It returns
// "" if there is no string at the path. Names are compared exactly.
func (c Claims) Text(path ...string) string {
	s, err := strictjson.Text(c.at(path))
	if err != nil {
		return ""
	}
	return s
}

// List returns the strings at a path of names, like Text: List("roles"), or
// List("realm_access", "roles") with Keycloak. A single string is a list of
// one. List returns nil for any other value, including an array with an element
// that is not a string.
func (c Claims) List(path ...string) []string {
	list, err := strictjson.Texts(c.at(path))
	if err != nil {
		return nil
	}
	return list
}

// at returns the value at a path, or null.
func (c Claims) at(path []string) []byte {
	value := []byte(c)
	for _, name := range path {
		var found []byte
		err := strictjson.Members(value, []string{name}, func(member, value []byte) error {
			if string(member) == name {
				found = value
			}
			return nil
		})
		if err != nil || found == nil {
			return []byte("null")
		}
		value = found
	}
	return value
}

// claimsRead lists the claims that readToken reads. A token with one of them in
// another case is rejected: readToken would ignore the claim, but Claims.Decode
// would not.
var claimsRead = []string{
	"iss", "sub", "client_id", "azp", "cid", "appid", "aud", "scope", "scp", "exp", "nbf", "iat",
	"jti", "acr", "auth_time", "cnf",
	"nonce", "at_hash", "c_hash", "events", "token_use", "typ",
}

// readToken parses claims by the rules of RFC 9068 section 2.2, or with anyType
// in the ways in which issuers deviate from it. It checks the syntax only.
//
// A claim of the wrong type is an error, with these exceptions, in which the
// claim counts as missing: an optional claim that is null, an auth_time that is
// not a date, and an acr that is a number or a boolean. A check that needs such
// a claim, such as RequireFresh, then fails.
func readToken(payload []byte, anyType bool) (*Token, error) {
	r := tokenReader{token: &Token{Claims: payload}, anyType: anyType}
	err := strictjson.Members(payload, nil, r.readClaim)
	if err == nil && r.token.ClientID == "" && r.client != nil {
		if r.token.ClientID, err = strictjson.Text(r.client); err != nil {
			err = fmt.Errorf("client: %w", err)
		}
	}
	if err != nil {
		return nil, err
	}
	if strings.Join(r.scopes, "") == "" {
		r.scopes = r.scp
	}
	for _, s := range r.scopes {
		r.token.Scopes = append(r.token.Scopes, splitScope(s)...)
	}
	return r.token, nil
}

// tokenReader is a token while its claims are read.
type tokenReader struct {
	token       *Token
	anyType     bool
	client      []byte // a claim used instead of client_id
	scopes, scp []string
}

// readClaim reads one claim.
func (r *tokenReader) readClaim(name, value []byte) (err error) {
	t := r.token
	if strictjson.IsNull(value) && slices.Contains(optionalClaims, string(name)) {
		return nil
	}
	switch string(name) {
	case "iss":
		t.Issuer, err = strictjson.Text(value)
	case "sub":
		t.Subject, err = strictjson.Text(value)
	case "client_id":
		t.ClientID, err = strictjson.Text(value)
	case "azp", "cid", "appid":
		if r.anyType && (r.client == nil || string(name) == "azp") {
			r.client = value
		}
	case "aud":
		t.Audience, err = strictjson.Texts(value)
	case "scope": // IdentityServer sends an array
		r.scopes, err = strictjson.Texts(value)
	case "scp":
		if r.anyType {
			r.scp, err = strictjson.Texts(value)
		}
	case "exp":
		t.Expiry, err = strictjson.Date(value)
	case "nbf":
		t.notBefore, err = strictjson.Date(value)
	case "iat":
		t.IssuedAt, err = strictjson.Date(value)
	case "jti":
		t.ID, err = strictjson.Text(value)
	case "acr":
		if value[0] == '"' || value[0] == '[' || value[0] == '{' {
			t.ACR, err = strictjson.Text(value)
		}
	case "auth_time": // AD FS sends a string
		t.AuthTime, _ = strictjson.Date(value)
	case "cnf":
		t.cnf, err = readConfirmation(value)
	case "nonce", "at_hash", "c_hash", "events":
		t.foreign = string(name)
	case "token_use", "typ": // the kind of token with some issuers
		switch kind, _ := strictjson.Text(value); kind {
		case "id", "ID", "refresh", "refresh_token", "Refresh", "Offline", "Logout":
			t.foreign = string(name)
		}
	default:
		for _, known := range claimsRead {
			if strings.EqualFold(known, string(name)) {
				return fmt.Errorf("%.40q must be written %s", name, known)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// optionalClaims lists the claims that count as missing if they are null.
var optionalClaims = []string{"client_id", "azp", "cid", "appid", "scope", "scp", "nbf", "iat",
	"jti", "acr", "auth_time"}

// issuerNamed returns the iss of claims that are not verified yet.
func issuerNamed(payload []byte) (name string, err error) {
	err = strictjson.Members(payload, nil, func(member, value []byte) (err error) {
		if string(member) == "iss" {
			name, err = strictjson.Text(value)
		}
		return err
	})
	return name, err
}

// check is one requirement of a token's claims.
type check struct {
	name string // of the claim
	rule string // for Explain
	// fails returns why the requirement is not met: reason for the client,
	// detail for the log. reason is empty if it is met.
	fails func(i *issuer, t *Token, now time.Time) (reason, detail string)
}

// applies reports whether Verify makes a check of a token. The kind is that of
// typ, unless any typ is accepted. Then some claims may be missing.
func (c *check) applies(i *issuer, t *Token) bool {
	switch c.name {
	case "kind":
		return i.anyType
	case "iat":
		return !i.anyType || !t.IssuedAt.IsZero()
	case "jti":
		return !i.anyType || t.ID != ""
	}
	return true
}

const (
	lacks     = "the token lacks a claim"
	notYet    = "the token is not valid yet"
	otherKind = "the token is not an access token"
)

// checks lists the requirements in the order in which they are checked (RFC
// 9068 section 4).
var checks = []check{
	{"iss", "its issuer is the configured one", func(i *issuer, t *Token, _ time.Time) (string, string) {
		if t.Issuer == i.url {
			return "", ""
		}
		return "the token is from another issuer", fmt.Sprintf("iss is %.80q, want %q", t.Issuer, i.url)
	}},
	{"kind", "it has no claim of an ID, logout or refresh token",
		func(_ *issuer, t *Token, _ time.Time) (string, string) {
			if t.foreign == "" {
				return "", ""
			}
			return otherKind, "the claim " + t.foreign + " marks another kind of token"
		}},
	{"aud", "it is for this API", func(i *issuer, t *Token, _ time.Time) (string, string) {
		if slices.Contains(t.Audience, i.audience) || len(t.Audience) == 0 && i.noAudience {
			return "", ""
		}
		return "the token is for another audience",
			fmt.Sprintf("aud is %s, this API is %q", shorten(t.Audience), i.audience)
	}},
	{"exp", "it has not expired", func(i *issuer, t *Token, now time.Time) (string, string) {
		switch {
		case t.Expiry.IsZero():
			return lacks, "exp is missing"
		case !now.Before(t.Expiry.Add(i.leeway)):
			return "the token has expired",
				fmt.Sprintf("it expired %s ago, %s", formatAge(now.Sub(t.Expiry)), formatTime(t.Expiry))
		}
		return "", ""
	}},
	{"nbf", "its nbf is not in the future", func(i *issuer, t *Token, now time.Time) (string, string) {
		if now.Before(t.notBefore.Add(-i.leeway)) {
			return notYet, fmt.Sprintf("nbf is in %s, %s", formatAge(t.notBefore.Sub(now)), formatTime(t.notBefore))
		}
		return "", ""
	}},
	{"iat", "it has an iat that is not in the future", func(i *issuer, t *Token, now time.Time) (string, string) {
		switch {
		case t.IssuedAt.IsZero():
			return lacks, "iat is missing"
		case now.Before(t.IssuedAt.Add(-i.leeway)):
			return notYet, fmt.Sprintf("iat is in %s, %s", formatAge(t.IssuedAt.Sub(now)), formatTime(t.IssuedAt))
		}
		return "", ""
	}},
	{"sub", "it has a subject", func(_ *issuer, t *Token, _ time.Time) (string, string) {
		if t.Subject == "" {
			return lacks, "sub is missing"
		}
		return "", ""
	}},
	{"client_id", "its client is accepted", func(i *issuer, t *Token, _ time.Time) (string, string) {
		switch {
		case t.ClientID == "" && !i.anyType:
			return lacks, "client_id is missing"
		case len(i.clients) > 0 && !slices.Contains(i.clients, t.ClientID):
			return "the token is of a client that is not accepted",
				fmt.Sprintf("client_id is %.80q, want one of %s", t.ClientID, shorten(i.clients))
		}
		return "", ""
	}},
	{"jti", "it has an identifier", func(_ *issuer, t *Token, _ time.Time) (string, string) {
		if t.ID == "" {
			return lacks, "jti is missing"
		}
		return "", ""
	}},
}

// token parses and checks the claims of a token with a valid signature.
func (i *issuer) token(payload []byte, now time.Time) (*Token, error) {
	t, err := readToken(payload, i.anyType)
	if err != nil {
		return nil, invalid("the token's claims cannot be read", err)
	}
	if err := i.checkClaims(t, now); err != nil {
		return nil, err
	}
	return t, nil
}

func (i *issuer) checkClaims(t *Token, now time.Time) error {
	for n := range checks {
		if !checks[n].applies(i, t) {
			continue
		}
		if reason, detail := checks[n].fails(i, t, now); reason != "" {
			return invalid(reason, errors.New(detail))
		}
	}
	return nil
}

func formatTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// formatAge formats d as a number of days, hours, minutes or seconds.
func formatAge(d time.Duration) string {
	for _, unit := range []struct {
		name string
		time.Duration
	}{{"days", 24 * time.Hour}, {"hours", time.Hour}, {"minutes", time.Minute}} {
		if d >= 2*unit.Duration {
			return fmt.Sprintf("%d %s", d/unit.Duration, unit.name)
		}
	}
	return fmt.Sprintf("%d seconds", d/time.Second)
}

// splitScope splits at spaces only (RFC 6749 section 3.3), not at other Unicode
// white space.
func splitScope(scope string) []string {
	return strings.FieldsFunc(scope, func(c rune) bool { return c == ' ' })
}

func shorten(list []string) string {
	const most = 80
	quoted := make([]string, len(list))
	for n, s := range list {
		quoted[n] = strconv.Quote(s)
	}
	s := "[" + strings.Join(quoted, ", ") + "]"
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
