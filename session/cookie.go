package session

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/securecookie"
)

// Cookie says how the session cookie looks. The zero value is
// __Host-Http-cloakroom with Secure, HttpOnly, Path=/ and SameSite=Strict.
type Cookie struct {
	// InsecureHTTP drops the name's prefix and the Secure attribute, for
	// development on http://localhost only.
	InsecureHTTP bool
	// Port is that of the public URL, empty for the scheme's default. With
	// InsecureHTTP it is part of the name, because cookies do not tell the ports
	// of one host apart.
	Port string
	// SameSite is Strict when zero; the only other value to use is http.SameSiteLaxMode.
	SameSite http.SameSite
}

// Name returns the name of the session cookie with suffix at its end. Its
// prefix makes browsers insist on Secure, HttpOnly, Path=/ and no Domain.
func (c Cookie) Name(suffix string) string {
	if c.InsecureHTTP {
		return "cloakroom-" + cmp.Or(c.Port, "80") + suffix
	}
	return "__Host-Http-cloakroom" + suffix
}

// CookieState is why a session cookie is not used.
type CookieState string

const (
	CookieForeign    CookieState = "foreign"    // of another App with the same session keys
	CookieUnopenable CookieState = "unopenable" // by none of the session keys: tampered with, or sealed with another key or by another release
	CookieDuplicate  CookieState = "duplicate"  // there are several of its name
)

// cookie reads and writes the session cookie.
type cookie struct {
	Cookie
	name   string
	codecs []securecookie.Codec
	opened *opened
}

// sealedName is the name that the session cookie's value is authenticated with.
// It is the same for all, so that one of another App is recognised: the name
// that the browser knows follows from the App.
const sealedName = "session"

// newCookie returns a cookie for the App of ring. Its value has no age limit:
// when a session ends is in its record, and replicas with a shorter maximum
// lifetime do not end sessions of others.
func newCookie(c Cookie, ring keyring) cookie {
	if c.SameSite == 0 {
		c.SameSite = http.SameSiteStrictMode
	}
	return cookie{Cookie: c, name: c.Name(""), codecs: ring.codecs("session cookie", 0), opened: newOpened()}
}

func (c cookie) encode(t ticket) (string, error) {
	value, err := securecookie.EncodeMulti(sealedName, append(t.id[:], t.dataKey[:]...), c.codecs...)
	if err != nil {
		return "", fmt.Errorf("seal session cookie: %w", err)
	}
	return value, nil
}

// ticket returns what the request's session cookie carries, and whether the
// first of the session keys has sealed it. The state is empty if there is a
// ticket, and if there is no cookie. If the cookie occurs twice, it is rejected:
// one may have been injected, and the order is not significant (RFC 6265bis
// 4.2.2).
func (c cookie) ticket(r *http.Request) (t ticket, first, ok bool, state CookieState) {
	value, n := cookieNamed(r.Header["Cookie"], c.name)
	switch {
	case n == 0:
		return ticket{}, false, false, ""
	case n > 1:
		return ticket{}, false, false, CookieDuplicate
	}
	now := time.Now()
	if t, first, ok = c.opened.get(value, now); ok {
		return t, first, true, ""
	}
	state = CookieUnopenable
	for i, codec := range c.codecs {
		var plain []byte
		if err := codec.Decode(sealedName, value, &plain); err != nil {
			if IsForeign(err) {
				state = CookieForeign
			}
			continue
		}
		if t, ok = parseTicket(plain); ok {
			c.opened.put(value, t, i == 0, now)
			return t, i == 0, true, ""
		}
	}
	return ticket{}, false, false, state
}

// ticket returns what the request's session cookie carries, and whether the
// first of the session keys has sealed it. The error wraps ErrNone, and says
// why; for the cookie of another App it wraps ErrForeign too.
func (m *Manager) ticket(r *http.Request) (t ticket, first bool, err error) {
	t, first, ok, state := m.cookie.ticket(r)
	if ok {
		return t, first, nil
	}
	if state == "" {
		return ticket{}, false, ErrNone
	}
	if m.cfg.CookieRefused != nil {
		m.cfg.CookieRefused(r, state)
	}
	if state == CookieForeign {
		return ticket{}, false, fmt.Errorf("%w: the session cookie is foreign: %w", ErrNone, ErrForeign)
	}
	return ticket{}, false, fmt.Errorf("%w: the session cookie is %s", ErrNone, state)
}

// cookieNamed returns the value of a cookie, and how many of its name there are.
func cookieNamed(lines []string, name string) (value string, n int) {
	for _, line := range lines {
		for len(line) > 0 {
			var pair string
			pair, line, _ = strings.Cut(line, ";")
			pair = strings.Trim(pair, " \t")
			if v, ok := strings.CutPrefix(pair, name); ok && strings.HasPrefix(v, "=") {
				value, n = v[1:], n+1
			}
		}
	}
	return value, n
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

// opened remembers for some seconds what was in cookies: to open one takes longer than all else that a request with a cached session needs.
type opened struct {
	seed   maphash.Seed
	shards [cacheShards]openedShard
}

type openedShard struct {
	mu      sync.Mutex              // guards all below
	cookies map[string]openedCookie // :: the cookie's value
}

type openedCookie struct {
	ticket ticket
	first  bool
	at     time.Time
}

const (
	openedFor = 10 * time.Second
	maxOpened = 1024 // in a shard, a quarter of a megabyte
)

func newOpened() *opened { return &opened{seed: maphash.MakeSeed()} }

func (o *opened) shard(value string) *openedShard {
	return &o.shards[maphash.String(o.seed, value)%cacheShards]
}

func (o *opened) get(value string, now time.Time) (t ticket, first, ok bool) {
	shard := o.shard(value)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	c, ok := shard.cookies[value]
	if !ok || now.Sub(c.at) > openedFor {
		return ticket{}, false, false
	}
	return c.ticket, c.first, true
}

func (o *opened) put(value string, t ticket, first bool, now time.Time) {
	shard := o.shard(value)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.cookies == nil || len(shard.cookies) >= maxOpened {
		shard.cookies = make(map[string]openedCookie) // those in use are there again within moments
	}
	shard.cookies[strings.Clone(value)] = openedCookie{t, first, now}
}
