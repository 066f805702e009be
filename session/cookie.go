package session

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/maphash"
	"net/http"
	"strings"
	"sync"
	"time"
)

// CookieConfig describes the session cookie. The zero value is
// __Host-Http-cloakroom with Secure, HttpOnly, Path=/ and SameSite=Strict.
type CookieConfig struct {
	// InsecureHTTP drops the prefix of the name and the Secure attribute, for
	// development on http://localhost only.
	InsecureHTTP bool
	// Port is the port of the public URL, empty for the default port of the
	// scheme. With InsecureHTTP the port is part of the cookie's name, because
	// cookies do not tell the ports of one host apart.
	Port string
	// BasePath is the path of the public URL, empty for none. With a path, a
	// hash of it is part of the cookie's name: browsers send the cookies of all
	// apps on a host to each of them, because the prefix of the name requires
	// Path=/.
	BasePath string
	// SameSite is the attribute of this name. Zero means
	// http.SameSiteStrictMode. The only other value to use is
	// http.SameSiteLaxMode.
	SameSite http.SameSite
}

// Name returns the name of the session cookie with suffix at the end. Without
// InsecureHTTP, the prefix of the name makes browsers insist on Secure,
// HttpOnly, Path=/ and no Domain.
func (c CookieConfig) Name(suffix string) string {
	if c.BasePath != "" {
		sum := sha256.Sum256([]byte(c.BasePath))
		suffix = "." + hex.EncodeToString(sum[:4]) + suffix
	}
	if c.InsecureHTTP {
		return "cloakroom-" + cmp.Or(c.Port, "80") + suffix
	}
	return "__Host-Http-cloakroom" + suffix
}

// CookieState is the state of the session cookie in a request.
type CookieState string

const (
	// CookieAbsent: the request has no session cookie.
	CookieAbsent CookieState = "absent"
	// CookieCurrent: the primary session key sealed the cookie.
	CookieCurrent CookieState = "current"
	// CookieOutdated: another session key sealed the cookie. The cookie can be
	// used until that key is removed. Cookie.Write replaces the cookie with a
	// current one.
	CookieOutdated CookieState = "outdated"
	// CookieForeign: the cookie belongs to another App with the same session
	// keys, and must not be deleted.
	CookieForeign CookieState = "foreign"
	// CookieUnopenable: no session key opens the cookie. The cookie was
	// modified, or sealed with another key or by another release.
	CookieUnopenable CookieState = "unopenable"
	// CookieDuplicate: the request has several session cookies. One of them may
	// have been injected, and the order of cookies is not significant (RFC
	// 6265bis, section 4.2.2).
	CookieDuplicate CookieState = "duplicate"
)

// Refused reports whether the request has a session cookie that cannot be used.
func (s CookieState) Refused() bool {
	return s == CookieForeign || s == CookieUnopenable || s == CookieDuplicate
}

// Cookie reads and writes the session cookie of one App. A Cookie is safe for
// concurrent use.
type Cookie struct {
	cfg   CookieConfig
	name  string
	codec *Codec
	cache *cookieCache
}

// cookieSealName is the name that the cookie's value is authenticated with. All
// Apps use the same cookieSealName, so that the cookie of another App is
// recognised. The name that the browser knows may differ between Apps (see
// CookieConfig.Port).
const cookieSealName = "session"

// NewCookie returns a Cookie whose values ring seals. Cookie.Read accepts a
// value of any age, because the record says when the session ends. So a replica
// with a shorter MaxLifetime does not end sessions that other replicas started.
func NewCookie(ring *Keyring, cfg CookieConfig) *Cookie {
	if cfg.SameSite == 0 {
		cfg.SameSite = http.SameSiteStrictMode
	}
	return &Cookie{cfg: cfg, name: cfg.Name(""), codec: ring.Codec("session cookie", 0), cache: newCookieCache()}
}

// Name returns the name of the cookie. The cookie must not reach an upstream.
func (c *Cookie) Name() string { return c.name }

// Read returns the ticket in the request's session cookie, and the state of
// that cookie. The ticket is zero unless the state is CookieCurrent or
// CookieOutdated. A ticket does not mean that its session still exists: see
// Manager.Find.
func (c *Cookie) Read(r *http.Request) (Ticket, CookieState) {
	value, n := findCookie(r.Header["Cookie"], c.name)
	switch {
	case n == 0:
		return Ticket{}, CookieAbsent
	case n > 1:
		return Ticket{}, CookieDuplicate
	}
	now := time.Now()
	if t, state, ok := c.cache.get(value, now); ok {
		return t, state
	}
	payload, key, err := c.codec.open(cookieSealName, value)
	if errors.Is(err, ErrForeign) {
		return Ticket{}, CookieForeign
	}
	t, ok := ticketOf(payload)
	if err != nil || !ok {
		return Ticket{}, CookieUnopenable
	}
	state := CookieCurrent
	if key > 0 {
		state = CookieOutdated
	}
	c.cache.put(value, t, state, now)
	return t, state
}

// findCookie returns the value of a cookie, and how many cookies have that
// name.
func findCookie(lines []string, name string) (value string, n int) {
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

// Write sets the cookie of s. The browser keeps the cookie no longer than the
// session lasts.
func (c *Cookie) Write(w http.ResponseWriter, s *Session) {
	value, err := c.codec.Seal(cookieSealName, s.ticket.bytes())
	if err != nil {
		panic(err) // only for a value that is too long, and a ticket has a fixed length
	}
	c.set(w, value, max(1, int(time.Until(s.limit).Round(time.Second)/time.Second)))
}

// Clear deletes the cookie from the browser. Clear sends the same attributes as
// Write. Otherwise a browser would ignore the deletion of a prefixed cookie
// (RFC 6265bis, section 5.7).
func (c *Cookie) Clear(w http.ResponseWriter) { c.set(w, "", -1) }

func (c *Cookie) set(w http.ResponseWriter, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: c.name, Value: value, Path: "/", MaxAge: maxAge,
		Secure: !c.cfg.InsecureHTTP, HttpOnly: true, SameSite: c.cfg.SameSite,
	})
}

// cookieCache holds the tickets of cookies that were opened in the last
// seconds. Opening a cookie takes longer than all else that a request with a
// cached session needs.
type cookieCache struct {
	seed   maphash.Seed
	shards [cacheShards]cookieCacheShard
}

type cookieCacheShard struct {
	mu      sync.Mutex              // guards cookies
	cookies map[string]openedCookie // :: value of the cookie
}

type openedCookie struct {
	ticket Ticket
	state  CookieState
	at     time.Time
}

const (
	cookieCacheAge       = 10 * time.Second
	cookieCacheShardSize = 1024 // cookies, a quarter of a megabyte
)

func newCookieCache() *cookieCache { return &cookieCache{seed: maphash.MakeSeed()} }

func (c *cookieCache) shard(value string) *cookieCacheShard {
	return &c.shards[maphash.String(c.seed, value)%cacheShards]
}

func (c *cookieCache) get(value string, now time.Time) (t Ticket, state CookieState, ok bool) {
	shard := c.shard(value)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	opened, ok := shard.cookies[value]
	if !ok || now.Sub(opened.at) > cookieCacheAge {
		return Ticket{}, "", false
	}
	return opened.ticket, opened.state, true
}

func (c *cookieCache) put(value string, t Ticket, state CookieState, now time.Time) {
	shard := c.shard(value)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.cookies == nil || len(shard.cookies) >= cookieCacheShardSize {
		shard.cookies = make(map[string]openedCookie) // those in use are opened again within moments
	}
	shard.cookies[strings.Clone(value)] = openedCookie{t, state, now}
}
