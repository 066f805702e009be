package devidp

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// User is a user whom a visitor can pick.
type User struct {
	Sub, Name, Email string
	// ACR is how the user signs in, one of Config.ACRValues, whatever the
	// client requests. Empty means as the client requests.
	ACR string
	// Claims are further claims of the user, for any scope. They are in ID
	// tokens, access tokens and userinfo. Names that the provider sets, such as
	// exp, are refused.
	Claims map[string]any

	listed bool // it is one of the provider's users, not one by claims
}

// DefaultUsers are alice and bob.
func DefaultUsers() []User {
	return []User{
		{Sub: "alice", Name: "Alice Liddell", Email: "alice@example.com"},
		{Sub: "bob", Name: "Bob Builder", Email: "bob@example.com"},
	}
}

// Initial returns the letter that the picker shows as the user's picture.
func (u User) Initial() string {
	for _, r := range u.Name + u.Sub {
		return strings.ToUpper(string(r))
	}
	return ""
}

// Notes returns what the picker shows besides name and email address, so that
// users with the same name can be told apart.
func (u User) Notes() []string {
	var notes []string
	if roles, ok := u.Claims["roles"].([]any); ok {
		for _, role := range roles {
			notes = append(notes, fmt.Sprint(role))
		}
	}
	if u.ACR != "" {
		notes = append(notes, "acr "+u.ACR)
	}
	return notes[:min(len(notes), 8)]
}

// is reports whether a login_hint identifies the user.
func (u User) is(hint string) bool { return hint == u.Sub || u.Email != "" && hint == u.Email }

// ownClaims are the claims that the provider sets itself.
var ownClaims = []string{
	"iss", "sub", "aud", "exp", "iat", "nbf", "jti", "nonce", "sid", "acr", "auth_time", "at_hash", "c_hash",
	"client_id", "scope", "cnf", "events",
}

// check verifies what does not depend on other users.
func (u User) check(acrValues []string) error {
	for _, name := range slices.Sorted(maps.Keys(u.Claims)) {
		if slices.Contains(ownClaims, name) {
			return fmt.Errorf("the claim %s is set by the provider", name)
		}
	}
	if u.ACR != "" && len(acrValues) > 0 && !slices.Contains(acrValues, u.ACR) {
		return fmt.Errorf("acr %q is not one of acr_values: %s", u.ACR, strings.Join(acrValues, ", "))
	}
	return nil
}

// UserFromClaims returns the user that claims describe, a JSON object with sub.
// acrValues are those of the provider; none means any.
func UserFromClaims(claims []byte, acrValues []string) (User, error) {
	var u User
	d := json.NewDecoder(bytes.NewReader(claims))
	d.UseNumber() // so that numbers stay as they are
	if err := d.Decode(&u.Claims); err != nil || u.Claims == nil || d.More() {
		return User{}, errors.New(`they are not a JSON object such as {"sub": "carol", "roles": ["admin"]}`)
	}
	for name, field := range map[string]*string{"sub": &u.Sub, "name": &u.Name, "email": &u.Email, "acr": &u.ACR} {
		value, ok := u.Claims[name]
		if !ok {
			continue
		}
		if *field, ok = value.(string); !ok {
			return User{}, fmt.Errorf("%s is not a text", name)
		}
		delete(u.Claims, name)
	}
	if u.Sub == "" || len(u.Sub) > longestName {
		return User{}, errors.New("sub is missing or too long")
	}
	return u, u.check(acrValues)
}

// describe adds the claims of a scope (OpenID Connect Core, section 5.4), and
// the user's further claims.
func (u User) describe(claims map[string]any, scope string) {
	scopes := strings.Fields(scope)
	if u.Name != "" && slices.Contains(scopes, "profile") {
		claims["name"] = u.Name
	}
	if u.Email != "" && slices.Contains(scopes, "email") {
		claims["email"], claims["email_verified"] = u.Email, true
	}
	maps.Copy(claims, u.Claims)
}

// preparedSignIn is a sign-in without the picker.
type preparedSignIn struct {
	user    User
	expires time.Time
}

const preparedLife = time.Minute

// SignInOnce returns a login_hint. The next authorization request that has it,
// within a minute, signs the user in without the picker, whatever its prompt
// is. The user need not be one of Config.Users.
func (p *Provider) SignInOnce(user User) (loginHint string, err error) {
	if user.Sub == "" {
		return "", errors.New("sub is missing")
	}
	if err := user.check(p.ACRValues()); err != nil {
		return "", err
	}
	loginHint = "once:" + rand.Text()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prune()
	p.prepared[loginHint] = &preparedSignIn{user, time.Now().Add(preparedLife)}
	return loginHint, nil
}

// takePrepared returns the user whom the login_hint of a request signs in, or
// nil. The caller holds mu.
func (p *Provider) takePrepared(r *authRequest) *User {
	s := p.prepared[r.loginHint]
	if s == nil || r.fault != nil || time.Now().After(s.expires) {
		return nil
	}
	delete(p.prepared, r.loginHint)
	return &s.user
}

// directory has the users whom a visitor can pick. It is not changed, but
// replaced.
type directory struct {
	users     []User
	acrValues []string // the weakest first
}

// SetUsers replaces Config.Users and Config.ACRValues. Tokens that are issued
// from then on have the claims of the new user with the same Sub, also for
// sessions that exist. The session of a user who is missing, or who signs in
// with another ACR, does not sign in any more; its tokens are refreshed as
// before. After an error, which joins every mistake, nothing has changed.
func (p *Provider) SetUsers(users []User, acrValues []string) error {
	if err := checkUsers(users, acrValues); err != nil {
		return err
	}
	if len(users) == 0 {
		users = DefaultUsers()
	}
	next := &directory{slices.Clone(users), acrValuesOrDefault(acrValues)}
	for i := range next.users {
		next.users[i].listed = true
	}
	p.directory.Store(next)
	return nil
}

// checkUsers returns every mistake in users.
func checkUsers(users []User, acrValues []string) error {
	var errs []error
	seen := make(map[string]bool)
	for i, user := range users {
		if user.Sub == "" || seen[user.Sub] {
			errs = append(errs, fmt.Errorf("user %d: Sub %q is empty or belongs to another user", i, user.Sub))
		}
		seen[user.Sub] = true
		if err := user.check(acrValuesOrDefault(acrValues)); err != nil {
			errs = append(errs, fmt.Errorf("user %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// latest returns what is known of a user by now. It is nil for a user whom
// SetUsers has removed.
func (p *Provider) latest(u User) *User {
	if !u.listed {
		return &u
	}
	for _, other := range p.directory.Load().users {
		if other.Sub == u.Sub {
			return &other
		}
	}
	return nil
}

// describe adds the claims of a user as they are by now.
func (p *Provider) describe(u User, claims map[string]any, scope string) {
	if latest := p.latest(u); latest != nil {
		u = *latest
	}
	u.describe(claims, scope)
}

// User returns the user with a sub whom a visitor can pick.
func (p *Provider) User(sub string) (User, error) {
	var known []string
	for _, u := range p.directory.Load().users {
		if u.Sub == sub {
			return u, nil
		}
		known = append(known, u.Sub)
	}
	return User{}, fmt.Errorf("there is no user %q; the users are %s", cmp.Or(sub, "(empty)"),
		strings.Join(known, ", "))
}

// Users returns the users whom a visitor can pick.
func (p *Provider) Users() []User { return slices.Clone(p.directory.Load().users) }

// ACRValues returns the strengths of authentication, the weakest first.
func (p *Provider) ACRValues() []string { return slices.Clone(p.directory.Load().acrValues) }
