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
	"slices"
	"strings"
	"time"

	"github.com/gorilla/securecookie"
	"golang.org/x/oauth2"

	"github.com/cloakroom-bff/cloakroom/session"
)

// attempt is one attempt to log in. Between login and callback it lives in a cookie of its own in the browser that made
// it, sealed; nothing is stored here. So several tabs can log in at once, and what was begun in one browser cannot be
// completed in another (RFC 9700 4.7.1).
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

	// The session there was when the login began: the one that its success replaces.
	Replaces  session.Secret `json:"-"` // session.Session.Ticket
	Subject   string         `json:"u,omitempty"`
	CrossSite bool           `json:"x,omitempty"` // another site sent the browser here

	Silent    bool `json:"l,omitempty"` // it goes on in an iframe, and ends with a message
	Restarted bool `json:"-"`           // begun by us because the one before was stale; in the state, for that one comes back when cookies do not
}

const (
	attemptLife = 10 * time.Minute
	// stateLife is for how long a state is known as ours when its attempt is gone.
	stateLife   = 24 * time.Hour
	maxAttempts = 5
	// maxAttemptBytes is what the cookies of all attempts may add to a request, in total.
	maxAttemptBytes = 5000
)

// attempts seals login attempts into cookies and takes them out again.
type attempts struct {
	cookie      session.Cookie
	name        string // what the cookies' names begin with
	codecs      []securecookie.Codec
	stateCodecs []securecookie.Codec

	refused func(r *http.Request, name string, state session.CookieState) // called with a cookie that find does not use
}

func newAttempts(cookie session.Cookie, keys [][]byte, app session.App) (attempts, error) {
	codecs, err := session.Codecs(keys, app, "login attempt", attemptLife)
	if err != nil {
		return attempts{}, err
	}
	stateCodecs, err := session.Codecs(keys, app, "login state", stateLife)
	if err != nil {
		return attempts{}, err
	}
	return attempts{cookie: cookie, name: cookie.Name("-login-"), codecs: codecs, stateCodecs: stateCodecs}, nil
}

// prepare gives a its secrets.
func (as *attempts) prepare(a *attempt, bound bool) error {
	var err error
	if a.State, err = as.newState(a.Restarted); err != nil {
		return err
	}
	a.Nonce = oauth2.GenerateVerifier() // 256 random bits, as for the verifier (RFC 7636 4.1)
	a.Verifier = session.Secret(oauth2.GenerateVerifier())
	a.Key = ""
	if bound {
		if a.Key, err = newKey(); err != nil {
			return err
		}
	}
	a.Began = time.Now().UnixMilli()
	return nil
}

// begin gives the browser the cookie of an attempt. Of older attempts it keeps the newest, so that ones which were never
// finished cannot pile up in the browser.
func (as *attempts) begin(w http.ResponseWriter, r *http.Request, a *attempt) error {
	name := as.cookieName(a.State)
	value, err := as.seal(name, a)
	if err != nil && a.ReturnTo != "/" { // it may have been too long
		a.ReturnTo = "/"
		value, err = as.seal(name, a)
	}
	if err != nil {
		return fmt.Errorf("seal login attempt: %w", err)
	}
	as.prune(w, r, len(name)+len(value))
	as.set(w, name, value, int(attemptLife/time.Second))
	return nil
}

// find returns the attempt that state belongs to. An attempt that is not there, has expired, or is for another state gives nil.
func (as *attempts) find(r *http.Request, state string) *attempt {
	name := as.cookieName(state)
	cookies := r.CookiesNamed(name)
	if len(cookies) != 1 {
		return nil
	}
	a, err := as.open(name, cookies[0].Value)
	if session.IsForeign(err) {
		as.refused(r, name, session.CookieForeign)
	}
	if err != nil || a.State == "" || subtle.ConstantTimeCompare([]byte(a.State), []byte(state)) != 1 {
		return nil
	}
	return a
}

// drop takes the cookie of the attempt with a state away: an attempt has one
// end. Unless it is another App's, it does not matter what is in it.
func (as *attempts) drop(w http.ResponseWriter, r *http.Request, state string) {
	name := as.cookieName(state)
	cookies := r.CookiesNamed(name)
	if len(cookies) == 0 {
		return
	}
	if _, err := as.open(name, cookies[0].Value); !session.IsForeign(err) {
		as.set(w, name, "", -1)
	}
}

// replaceNext tells the other attempts in the browser that a session has begun
// which the next success replaces. On the way back from the provider a Strict
// session cookie stays away, and nothing else would name that session.
func (as *attempts) replaceNext(w http.ResponseWriter, r *http.Request, state string, started *session.Session) {
	done := as.cookieName(state)
	n := 0
	for _, c := range r.Cookies() {
		if !strings.HasPrefix(c.Name, as.name) || c.Name == done {
			continue
		}
		if n++; n >= maxAttempts {
			return
		}
		a, err := as.open(c.Name, c.Value)
		if err != nil {
			continue
		}
		a.Replaces, a.Subject = started.Ticket(), started.Subject
		left := attemptLife - time.Since(time.UnixMilli(a.Began))
		if value, err := as.seal(c.Name, a); err == nil && left >= time.Second {
			as.set(w, c.Name, value, int(left/time.Second))
		}
	}
}

// newState returns a state that can later be told from one that somebody made up, and that says whether it was begun by us.
func (as *attempts) newState(restarted bool) (string, error) {
	var b [17]byte
	rand.Read(b[:16])
	if restarted {
		b[16] = 1
	}
	return securecookie.EncodeMulti("state", b[:], as.stateCodecs...)
}

// stale says whether state is that of an attempt which was begun here and is gone, so that the login may be begun again: once, for
// the second time something is in the way that will still be there the third time.
func (as *attempts) stale(state string) bool {
	var b []byte
	err := securecookie.DecodeMulti("state", state, &b, as.stateCodecs...)
	return err == nil && len(b) == 17 && b[16] == 0
}

// cookieName is the name of the cookie of the attempt with a state.
func (as *attempts) cookieName(state string) string {
	sum := sha256.Sum256([]byte(state))
	return as.name + hex.EncodeToString(sum[:6])
}

// prune takes away attempts until there is room for one more that takes up size: first what does not open, then the oldest.
func (as *attempts) prune(w http.ResponseWriter, r *http.Request, size int) {
	type kept struct {
		name  string
		size  int
		began int64
	}
	var others []kept
	for _, c := range r.Cookies() {
		if !strings.HasPrefix(c.Name, as.name) {
			continue
		}
		k := kept{c.Name, len(c.Name) + len(c.Value), 0}
		a, err := as.open(c.Name, c.Value)
		if session.IsForeign(err) {
			continue // another App on this host removes its own
		}
		if err == nil {
			k.began = a.Began
		}
		others = append(others, k)
	}
	slices.SortFunc(others, func(a, b kept) int { return int(b.began - a.began) })
	for i, k := range others {
		size += k.size
		if i >= maxAttempts-1 || size > maxAttemptBytes || k.began == 0 {
			as.set(w, k.name, "", -1)
		}
	}
}

// sealedAttempt is an attempt as it stands in the cookie: the one place where its secrets are written out.
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

func (as *attempts) seal(name string, a *attempt) (string, error) {
	var plain bytes.Buffer
	e := json.NewEncoder(&plain)
	e.SetEscapeHTML(false) // six bytes for each & of return_to
	if err := e.Encode(sealedAttempt{*a, a.Verifier.Reveal(), a.Key.Reveal(), a.Replaces.Reveal(), a.Restarted}); err != nil {
		return "", err
	}
	return securecookie.EncodeMulti(as.sealedName(name), plain.Bytes(), as.codecs...)
}

func (as *attempts) open(name, value string) (*attempt, error) {
	var plain []byte
	if err := securecookie.DecodeMulti(as.sealedName(name), value, &plain, as.codecs...); err != nil {
		return nil, err
	}
	var sealed sealedAttempt
	if err := json.Unmarshal(plain, &sealed); err != nil {
		return nil, err
	}
	a := sealed.attempt
	a.Verifier, a.Key, a.Replaces = session.Secret(sealed.Verifier), session.Secret(sealed.Key), session.Secret(sealed.Replaces)
	a.Restarted = sealed.Restarted
	if time.Since(time.UnixMilli(a.Began)) > attemptLife { // replaceNext seals it anew
		return nil, errors.New("login attempt has expired")
	}
	if a.Nonce == "" || a.Verifier == "" || a.ReturnTo == "" {
		return nil, errors.New("login attempt is not whole")
	}
	return &a, nil
}

// set writes an attempt's cookie. It is Lax, for a Strict one would not come along on the way back from the provider.
func (as *attempts) set(w http.ResponseWriter, name, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: maxAge,
		Secure: !as.cookie.InsecureHTTP, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}
