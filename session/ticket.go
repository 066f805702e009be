package session

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/http"
	"time"

	"github.com/gorilla/securecookie"
)

// ticket is what the cookie carries: which record, and this half of the key that opens it.
type ticket struct {
	id      [16]byte
	dataKey [32]byte
}

func newTicket() ticket {
	var t ticket
	rand.Read(t.id[:]) // never fails: crypto/rand ends the process rather than return a predictable byte
	rand.Read(t.dataKey[:])
	return t
}

// sessionID is the hash of the id by which the store, the user and the logs know the session. None of them learns the id. It has
// as many bits as the id.
func (t ticket) sessionID() string {
	sum := sha256.Sum256(t.id[:])
	return base64.RawURLEncoding.EncodeToString(sum[:len(t.id)])
}

func (t ticket) equal(other ticket) bool {
	return subtle.ConstantTimeCompare(t.id[:], other.id[:])&subtle.ConstantTimeCompare(t.dataKey[:], other.dataKey[:]) == 1
}

// Cookie says how the session cookie looks. The zero value is __Host-Http-cloakroom with Secure, HttpOnly, Path=/ and
// SameSite=Strict.
type Cookie struct {
	// InsecureHTTP drops the name's prefix and the Secure attribute, for development on http://localhost only.
	InsecureHTTP bool
	// SameSite is Strict when zero; the only other value to use is http.SameSiteLaxMode.
	SameSite http.SameSite
}

// Name returns base with the prefix that makes browsers insist on Secure, HttpOnly, Path=/ and no Domain.
func (c Cookie) Name(base string) string {
	if c.InsecureHTTP {
		return base
	}
	return "__Host-Http-" + base
}

// cookie reads and writes the session cookie.
type cookie struct {
	Cookie
	name   string
	codecs []securecookie.Codec
}

func newCookie(c Cookie, ring keyring, maxAge time.Duration) cookie {
	if c.SameSite == 0 {
		c.SameSite = http.SameSiteStrictMode
	}
	return cookie{Cookie: c, name: c.Name("cloakroom"), codecs: ring.codecs("session cookie", maxAge)}
}

func (c cookie) encode(t ticket) (string, error) {
	value, err := securecookie.EncodeMulti(c.name, append(t.id[:], t.dataKey[:]...), c.codecs...)
	if err != nil {
		return "", fmt.Errorf("seal session cookie: %w", err)
	}
	return value, nil
}

// ticket returns what the request's session cookie carries, and whether the first of the session keys has sealed it. Two cookies of that name are none: one of them was planted, and
// which one cannot be known (RFC 6265bis 4.2.2: no reliance on order).
func (c cookie) ticket(r *http.Request) (t ticket, first, ok bool) {
	cookies := r.CookiesNamed(c.name)
	if len(cookies) != 1 {
		return ticket{}, false, false
	}
	for i, codec := range c.codecs {
		var plain []byte
		if err := codec.Decode(c.name, cookies[0].Value, &plain); err != nil || len(plain) != len(t.id)+len(t.dataKey) {
			continue
		}
		copy(t.id[:], plain)
		copy(t.dataKey[:], plain[len(t.id):])
		return t, i == 0, true
	}
	return ticket{}, false, false
}

func (c cookie) set(w http.ResponseWriter, value string, maxAge time.Duration) {
	http.SetCookie(w, &http.Cookie{
		Name: c.name, Value: value, Path: "/", MaxAge: max(1, int(maxAge/time.Second)),
		Secure: !c.InsecureHTTP, HttpOnly: true, SameSite: c.SameSite,
	})
}

// clear repeats the attributes, without which a browser ignores the deletion of a prefixed cookie (RFC 6265bis 5.7).
func (c cookie) clear(w http.ResponseWriter) {
	http.SetCookie(w, &http.Cookie{
		Name: c.name, Path: "/", MaxAge: -1,
		Secure: !c.InsecureHTTP, HttpOnly: true, SameSite: c.SameSite,
	})
}
