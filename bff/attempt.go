package bff

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/session"
)

// attempt is one login attempt. Between login and callback it is stored sealed
// in a cookie of its own, and nowhere else. So several tabs can log in at once,
// and a login that began in one browser cannot be completed in another (RFC
// 9700, section 4.7.1).
type attempt struct {
	State    string         `json:"s"`
	Nonce    string         `json:"n"`
	Verifier session.Secret `json:"-"`
	Key      session.Secret `json:"-"` // that the tokens are going to be bound to; empty: they will not be
	ReturnTo string         `json:"r"`
	Began    int64          `json:"b"` // Unix milliseconds

	Prompt    string `json:"p,omitempty"`
	MaxAge    string `json:"m,omitempty"` // seconds, as asked for
	ACRValues string `json:"a,omitempty"` // space-separated

	// The session there was when the login began: the one that its success
	// replaces.
	Replaces  session.Ticket `json:"-"`
	Subject   string         `json:"u,omitempty"`
	CrossSite bool           `json:"x,omitempty"` // another site sent the browser here

	Silent  bool `json:"l,omitempty"` // it goes on in an iframe, and ends with a message
	OwnPage bool `json:"w,omitempty"` // a page of the app's origin started it (see startedByOwnPage)
	// Begun by us because the one before was stale; in the state, for that one
	// comes back when cookies do not.
	Restarted bool `json:"-"`
}

// request returns the authorization request of the attempt.
func (at *attempt) request(parameters url.Values) oidc.Request {
	return oidc.Request{State: at.State, Nonce: at.Nonce, Verifier: at.Verifier, Key: at.Key, Parameters: parameters}
}

const (
	attemptLife = 10 * time.Minute
	// stateLife is for how long a state is known as ours when its attempt is
	// gone.
	stateLife   = 24 * time.Hour
	maxAttempts = 5
	// maxAttemptBytes is what the cookies of all attempts may add to a request,
	// in total.
	maxAttemptBytes = 5000
	// maxAttemptsRead bounds how many cookies of attempts are looked at in one
	// request, and removed with its response.
	maxAttemptsRead = 16
	// maxStateReturnTo is the longest return_to that a state contains. The
	// state is part of two URLs, in which it takes up to twice as much.
	maxStateReturnTo = 256
)

// attempts seals login attempts into cookies and takes them out again.
type attempts struct {
	cookie     session.CookieConfig
	name       string // what the cookies' names begin with
	codec      *session.Codec
	stateCodec *session.Codec

	refused func(r *http.Request, name string, state session.CookieState) // called with a cookie that find does not use
}

func newAttempts(cookie session.CookieConfig, ring *session.Keyring) attempts {
	return attempts{
		cookie: cookie, name: cookie.Name("-login-"),
		codec: ring.Codec("login attempt", attemptLife), stateCodec: ring.Codec("login state", stateLife),
	}
}

// prepare gives a its secrets.
func (as *attempts) prepare(at *attempt, bound bool) error {
	var err error
	if at.State, err = as.newState(at); err != nil {
		return err
	}
	at.Nonce = oauth2.GenerateVerifier() // 256 random bits, as for the verifier (RFC 7636 4.1)
	at.Verifier = session.Secret(oauth2.GenerateVerifier())
	at.Key = ""
	if bound {
		if at.Key, err = oidc.NewKey(); err != nil {
			return err
		}
	}
	at.Began = time.Now().UnixMilli()
	return nil
}

// begin gives the browser the cookie of an attempt. Of older attempts it keeps
// the newest, so that abandoned ones cannot pile up in the browser.
func (as *attempts) begin(w http.ResponseWriter, r *http.Request, at *attempt) error {
	name := as.cookieName(at.State)
	value, err := as.seal(name, at)
	if err != nil && at.ReturnTo != "/" { // it may have been too long
		at.ReturnTo = "/"
		value, err = as.seal(name, at)
	}
	if err != nil {
		return fmt.Errorf("seal login attempt: %w", err)
	}
	as.prune(w, r, len(name)+len(value), at.Restarted)
	as.set(w, name, value, int(attemptLife/time.Second))
	return nil
}

// find returns the attempt with a state. It returns nil if there is none in
// this browser, or if it has expired.
func (as *attempts) find(r *http.Request, state string) *attempt {
	name := as.cookieName(state)
	cookies := cookiesWithPrefix(r, name+"=", 2)
	if len(cookies) != 1 {
		return nil
	}
	at, err := as.open(name, cookies[0].value)
	if errors.Is(err, session.ErrForeign) {
		as.refused(r, name, session.CookieForeign)
	}
	if err != nil || at.State == "" || subtle.ConstantTimeCompare([]byte(at.State), []byte(state)) != 1 {
		return nil
	}
	return at
}

// drop takes the cookie of the attempt with a state away: an attempt has one
// end. Unless it is another App's, it does not matter what is in it.
func (as *attempts) drop(w http.ResponseWriter, r *http.Request, state string) {
	name := as.cookieName(state)
	cookies := cookiesWithPrefix(r, name+"=", 1)
	if len(cookies) == 0 {
		return
	}
	if _, err := as.open(name, cookies[0].value); !errors.Is(err, session.ErrForeign) {
		as.set(w, name, "", -1)
	}
}

// replaceNext tells the other attempts in the browser that a session has begun
// which the next success replaces. On the way back from the provider a Strict
// session cookie stays away, and nothing else would name that session.
func (as *attempts) replaceNext(w http.ResponseWriter, r *http.Request, state string, started *session.Session) {
	done := as.cookieName(state)
	for _, c := range cookiesWithPrefix(r, as.name, maxAttempts+1) {
		at, err := as.open(c.name, c.value)
		if err != nil || c.name == done {
			continue
		}
		at.Replaces, at.Subject = started.Ticket(), started.Subject
		left := attemptLife - time.Since(time.UnixMilli(at.Began))
		if value, err := as.seal(c.name, at); err == nil && left >= time.Second {
			as.set(w, c.name, value, int(left/time.Second))
		}
	}
}

// sentState is what a state says, also once its attempt is gone.
type sentState struct {
	returnTo  string // "/" if it was too long
	restarted bool
}

// newState returns a state that can later be told from one that was made up.
func (as *attempts) newState(at *attempt) (string, error) {
	b := make([]byte, 17, 17+len(at.ReturnTo))
	rand.Read(b[:16])
	if at.Restarted {
		b[16] = 1
	}
	if len(at.ReturnTo) <= maxStateReturnTo {
		b = append(b, at.ReturnTo...)
	}
	return as.stateCodec.Seal("state", b)
}

// openState returns what a state says, if it is one of ours and not too old.
func (as *attempts) openState(state string) (sentState, bool) {
	b, err := as.stateCodec.Open("state", state)
	if err != nil || len(b) < 17 {
		return sentState{}, false
	}
	return sentState{returnTo: parseReturnTo(string(b[17:])), restarted: b[16] != 0}, true
}

// cookieName is the name of the cookie of the attempt with a state.
func (as *attempts) cookieName(state string) string {
	sum := sha256.Sum256([]byte(state))
	return as.name + hex.EncodeToString(sum[:6])
}

// prune removes cookies of attempts until there is room for one more of a size:
// first those that do not open, then the oldest. A restarted attempt removes
// none that is valid but another restarted one: the user may be about to finish
// it, in another tab. So there are at most maxAttempts, and a restarted one.
func (as *attempts) prune(w http.ResponseWriter, r *http.Request, size int, restarted bool) {
	type kept struct {
		name      string
		size      int
		began     int64
		restarted bool
	}
	var others []kept
	for _, c := range cookiesWithPrefix(r, as.name, maxAttemptsRead) {
		k := kept{name: c.name, size: len(c.name) + len(c.value)}
		at, err := as.open(c.name, c.value)
		if errors.Is(err, session.ErrForeign) {
			continue // another App on this host removes its own
		}
		if err == nil {
			k.began, k.restarted = at.Began, at.Restarted
		}
		others = append(others, k)
	}
	slices.SortFunc(others, func(a, b kept) int { return int(b.began - a.began) })
	for i, k := range others {
		size += k.size
		tooMany := i >= maxAttempts-1 || size > maxAttemptBytes
		if restarted {
			tooMany = k.restarted
		}
		if tooMany || k.began == 0 {
			as.set(w, k.name, "", -1)
		}
	}
}

// cookiePair is a cookie as it stands in a request.
type cookiePair struct{ name, value string }

// cookiesWithPrefix returns the cookies whose names begin with prefix, most at
// most. Unlike http.Request.Cookies it takes little time for those that are of
// no interest, of which there may be thousands.
func cookiesWithPrefix(r *http.Request, prefix string, most int) []cookiePair {
	var found []cookiePair
	for _, line := range r.Header["Cookie"] {
		if !strings.Contains(line, prefix) {
			continue
		}
		for pair := range strings.SplitSeq(line, ";") {
			pair = strings.Trim(pair, " \t")
			if !strings.HasPrefix(pair, prefix) {
				continue
			}
			if name, value, ok := strings.Cut(pair, "="); ok {
				if found = append(found, cookiePair{name, value}); len(found) == most {
					return found
				}
			}
		}
	}
	return found
}

// sealedAttempt is the plaintext of the cookie. Only here are the secrets of an
// attempt serialized.
type sealedAttempt struct {
	attempt
	Verifier  string `json:"v"`
	Key       string `json:"k,omitempty"`
	Replaces  string `json:"o,omitempty"`
	Restarted bool   `json:"z,omitempty"`
}

// sealedName is the name that the value of an attempt's cookie is authenticated
// with. It is the part that follows from the state, so that an attempt of
// another App is recognised.
func (as *attempts) sealedName(name string) string { return strings.TrimPrefix(name, as.name) }

func (as *attempts) seal(name string, at *attempt) (string, error) {
	var plain bytes.Buffer
	e := json.NewEncoder(&plain)
	e.SetEscapeHTML(false) // six bytes for each & of return_to
	if err := e.Encode(sealedAttempt{*at, at.Verifier.Reveal(), at.Key.Reveal(),
		at.Replaces.Secret().Reveal(), at.Restarted}); err != nil {
		return "", err
	}
	return as.codec.Seal(as.sealedName(name), plain.Bytes())
}

func (as *attempts) open(name, value string) (*attempt, error) {
	plain, err := as.codec.Open(as.sealedName(name), value)
	if err != nil {
		return nil, err
	}
	var sealed sealedAttempt
	if err := json.Unmarshal(plain, &sealed); err != nil {
		return nil, err
	}
	at := sealed.attempt
	at.Verifier, at.Key = session.Secret(sealed.Verifier), session.Secret(sealed.Key)
	at.Replaces, _ = session.ParseTicket(session.Secret(sealed.Replaces)) // zero without a session
	at.Restarted = sealed.Restarted
	if time.Since(time.UnixMilli(at.Began)) > attemptLife { // replaceNext seals it anew
		return nil, errors.New("login attempt has expired")
	}
	if at.Nonce == "" || at.Verifier == "" || at.ReturnTo == "" {
		return nil, errors.New("login attempt is not whole")
	}
	return &at, nil
}

// set writes an attempt's cookie. It is SameSite=Lax, because browsers withhold
// a Strict one on the navigation back from the provider.
func (as *attempts) set(w http.ResponseWriter, name, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: maxAge,
		Secure: !as.cookie.InsecureHTTP, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// accept fails unless the user signed in as the attempt asked (OpenID Connect
// Core, section 3.1.3.7). An attempt of another site does not change who is
// signed in.
func (at *attempt) accept(id *oidc.Identity) error {
	if at.ACRValues != "" && !slices.Contains(strings.Fields(at.ACRValues), id.ACR) { // (12)
		return problem.LoginTooWeak.WithCause(fmt.Errorf("ID token: acr is %q, want one of %q", id.ACR, at.ACRValues))
	}
	if at.MaxAge != "" { // (13)
		if id.AuthTime.IsZero() {
			return problem.LoginInvalid.WithCause(errors.New("ID token: auth_time is missing or no date, " +
				"and max_age was sent"))
		}
		if time.Until(id.AuthTime) > oidc.ClockSkew {
			return problem.LoginInvalid.WithCause(errors.New("ID token: auth_time is ahead of our clock"))
		}
		seconds, _ := strconv.Atoi(at.MaxAge)
		if age := time.Since(id.AuthTime); age > time.Duration(seconds)*time.Second+oidc.ClockSkew {
			return errAuthTooOld
		}
	}
	// A provider that reports no time may have done what prompt=login says, and
	// a user can remove the parameter from the URL at the provider.
	began := time.UnixMilli(at.Began).Add(-oidc.ClockSkew)
	if slices.Contains(strings.Fields(at.Prompt), "login") && !id.AuthTime.IsZero() && id.AuthTime.Before(began) {
		return problem.LoginTooWeak.WithCause(errors.New("ID token: auth_time is before the login, " +
			"and prompt=login was sent"))
	}
	if at.CrossSite && at.Subject != "" && at.Subject != id.Subject {
		return problem.OtherAccount
	}
	return nil
}

// errAuthTooOld means that the user signed in longer ago than max_age allows.
var errAuthTooOld = problem.LoginTooWeak.WithCause(errors.New("ID token: auth_time is longer ago than max_age"))
