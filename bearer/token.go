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

// Token is an access token that was found good. Those who share one must not change it.
type Token struct {
	Issuer   string
	Subject  string   // who it speaks for: a user, or the client itself (see IsClient)
	ClientID string   // who asked for it; empty only with InsecureAllowAnyType or Introspection
	Audience []string // the APIs it is for, this one among them
	Scopes   []string // what it allows; nil if it has no scope
	Expiry   time.Time
	IssuedAt time.Time // zero only with InsecureAllowAnyType or Introspection
	ID       string    // jti, unique with its issuer; empty only with InsecureAllowAnyType or Introspection
	ACR      string    // how its user signed in (RFC 9470 section 6); empty if it does not say
	AuthTime time.Time // when its user signed in; zero if it does not say
	Claims   Claims    // all of them, those above included

	notBefore time.Time
	foreign   string // a claim that tells another kind of JWT; empty: there is none
	cnf       confirmation
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
// claims that Token has fields for, because a token with one of these in another case is refused. Decode fails if two names differ only in case, as roles
// and Roles do: there would be two to choose from. Text and List compare names to the letter.
func (c Claims) Decode(v any) error {
	var names []string
	note := func(name, _ []byte) error {
		names = append(names, string(name))
		return nil
	}
	if err := strictjson.Members(c, nil, note); err != nil {
		return err
	}
	if err := strictjson.Members(c, names, func(_, _ []byte) error { return nil }); err != nil {
		return err
	}
	return json.Unmarshal(c, v)
}

// Text returns the string at a path of names: Text("tenant") is the claim tenant, and Text("address", "country") a member of the claim address. It returns "" if what is there
// is no string, or nothing is. Names are compared to the letter.
func (c Claims) Text(path ...string) string {
	s, err := strictjson.Text(c.at(path))
	if err != nil {
		return ""
	}
	return s
}

// List returns the strings at a path of names, as Text does: List("roles"), or List("realm_access", "roles") as Keycloak has it. One string is a list of one. It returns nil if what is
// there is anything else, as an array in which one member is no string.
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

// claimsRead are the claims that readToken reads. None may be there in another case alone: readToken would miss it, and Claims.Decode would not.
var claimsRead = []string{
	"iss", "sub", "client_id", "azp", "cid", "appid", "aud", "scope", "scp", "exp", "nbf", "iat", "jti", "acr", "auth_time", "cnf",
	"nonce", "at_hash", "c_hash", "events", "token_use", "typ",
}

// readToken reads claims, by the rules of RFC 9068 section 2.2 or, with anyType, in whatever way issuers write them. It checks nothing but that they can be read.
//
// A claim of another type than its standard's is an error, with these exceptions,
// in which it counts as missing: an optional claim that is null, auth_time that is
// no date, and acr that is a number or a boolean. What needs one of them, such as
// RequireFresh, does not get it then.
func readToken(payload []byte, anyType bool) (*Token, error) {
	t := &Token{Claims: payload}
	var client []byte // what stands in for client_id
	var scopes, scp []string
	err := strictjson.Members(payload, nil, func(name, value []byte) (err error) {
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
			if anyType && (client == nil || string(name) == "azp") {
				client = value
			}
		case "aud":
			t.Audience, err = strictjson.Texts(value)
		case "scope": // an array with IdentityServer
			scopes, err = strictjson.Texts(value)
		case "scp":
			if anyType {
				scp, err = strictjson.Texts(value)
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
		case "auth_time": // a text with AD FS
			t.AuthTime, _ = strictjson.Date(value)
		case "cnf":
			t.cnf, err = readConfirmation(value)
		case "nonce", "at_hash", "c_hash", "events":
			t.foreign = string(name)
		case "token_use", "typ": // what some issuers tell their tokens apart by
			switch kind, _ := strictjson.Text(value); kind {
			case "id", "ID", "refresh", "refresh_token", "Refresh", "Offline", "Logout":
				t.foreign = string(name)
			}
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
	if err == nil && t.ClientID == "" && client != nil {
		if t.ClientID, err = strictjson.Text(client); err != nil {
			err = fmt.Errorf("the client: %w", err)
		}
	}
	if err != nil {
		return nil, err
	}
	if strings.Join(scopes, "") == "" {
		scopes = scp
	}
	for _, s := range scopes {
		t.Scopes = append(t.Scopes, splitScope(s)...)
	}
	return t, nil
}

// optionalClaims are those that count as missing when they are null.
var optionalClaims = []string{"client_id", "azp", "cid", "appid", "scope", "scp", "nbf", "iat", "jti", "acr", "auth_time"}

// issuerNamed returns the iss of claims that nothing is known of yet.
func issuerNamed(payload []byte) (name string, err error) {
	err = strictjson.Members(payload, nil, func(member, value []byte) (err error) {
		if string(member) == "iss" {
			name, err = strictjson.Text(value)
		}
		return err
	})
	return name, err
}

// A check is one thing that has to hold of a token's claims.
type check struct {
	name string // the claim, or claims
	rule string // what has to hold
	// fails returns why it does not; reason is empty if it does.
	fails func(i *issuer, t *Token, now time.Time) (reason, why string)
}

const (
	lacks     = "the token lacks a claim"
	notYet    = "the token is not valid yet"
	otherKind = "the token is not an access token"
)

// checks are what a token's claims have to be, in the order in which they are looked at (RFC 9068 section 4).
var checks = []check{
	{"iss", "it is of the issuer", func(i *issuer, t *Token, _ time.Time) (string, string) {
		if t.Issuer == i.url {
			return "", ""
		}
		return "the token is from another issuer", fmt.Sprintf("iss is %.80q, want %q", t.Issuer, i.url)
	}},
	{"kind", "it has no claim of another kind of JWT", func(i *issuer, t *Token, _ time.Time) (string, string) {
		if t.foreign == "" || !i.anyType { // otherwise typ has said so
			return "", ""
		}
		return otherKind, "by the claim " + t.foreign + " it is one for something else"
	}},
	{"aud", "it is for this API", func(i *issuer, t *Token, _ time.Time) (string, string) {
		if slices.Contains(t.Audience, i.audience) || len(t.Audience) == 0 && i.noAudience {
			return "", ""
		}
		return "the token is for another audience", fmt.Sprintf("aud is %s, this API is %q", shorten(t.Audience), i.audience)
	}},
	{"exp", "it has not expired", func(i *issuer, t *Token, now time.Time) (string, string) {
		switch {
		case t.Expiry.IsZero():
			return lacks, "exp is missing"
		case !now.Before(t.Expiry.Add(i.leeway)):
			return "the token has expired", fmt.Sprintf("it expired %s ago, %s", inWords(now.Sub(t.Expiry)), day(t.Expiry))
		}
		return "", ""
	}},
	{"nbf", "it is valid by now", func(i *issuer, t *Token, now time.Time) (string, string) {
		if now.Before(t.notBefore.Add(-i.leeway)) {
			return notYet, fmt.Sprintf("nbf is in %s, %s", inWords(t.notBefore.Sub(now)), day(t.notBefore))
		}
		return "", ""
	}},
	{"iat", "it was issued, and not in the future", func(i *issuer, t *Token, now time.Time) (string, string) {
		switch {
		case t.IssuedAt.IsZero() && !i.anyType:
			return lacks, "iat is missing"
		case now.Before(t.IssuedAt.Add(-i.leeway)):
			return notYet, fmt.Sprintf("iat is in %s, %s", inWords(t.IssuedAt.Sub(now)), day(t.IssuedAt))
		}
		return "", ""
	}},
	{"sub", "it says who it speaks for", func(_ *issuer, t *Token, _ time.Time) (string, string) {
		if t.Subject == "" {
			return lacks, "sub is missing"
		}
		return "", ""
	}},
	{"client_id", "it says who asked for it, and that client is accepted", func(i *issuer, t *Token, _ time.Time) (string, string) {
		switch {
		case t.ClientID == "" && !i.anyType:
			return lacks, "client_id is missing"
		case len(i.clients) > 0 && !slices.Contains(i.clients, t.ClientID):
			return "the token is of a client that is not accepted", fmt.Sprintf("client_id is %.80q, want one of %s", t.ClientID, shorten(i.clients))
		}
		return "", ""
	}},
	{"jti", "it has an identifier", func(i *issuer, t *Token, _ time.Time) (string, string) {
		if t.ID == "" && !i.anyType {
			return lacks, "jti is missing"
		}
		return "", ""
	}},
}

// token reads claims whose signature is right, and checks them.
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
		if reason, why := checks[n].fails(i, t, now); reason != "" {
			return invalid(reason, errors.New(why))
		}
	}
	return nil
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// inWords says how long d is as people do.
func inWords(d time.Duration) string {
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

// splitScope splits at spaces alone, as RFC 6749 section 3.3 has it, and not at what Unicode takes for one.
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
