package bff

import (
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// logoutHint tells the provider who signs out (RP-Initiated Logout 2): with the
// ID token, or, where that would make the URL too long, with a name that the
// provider knows the user by.
type logoutHint struct {
	idToken session.Secret
	user    string // logout_hint
}

// newLogoutHint makes the hint of a session that has ended. Microsoft Entra
// wants the claim login_hint back as logout_hint.
func newLogoutHint(ended *session.Session) logoutHint {
	hint := logoutHint{ended.Tokens.ID, ended.Subject}
	if name, _ := ended.Claim("login_hint").(string); name != "" && len(name) <= 255 && isFieldValue(name) {
		hint.user = name
	}
	return hint
}

// logoutHintLife is how long a script may take to send the browser on after a
// logout.
const logoutHintLife = time.Minute

// maxLogoutHint bounds the cookie of an ID token: with the rest of the response
// header it has to fit into the 4 kB that nginx has for that.
const maxLogoutHint = 3000

// logoutHints keeps an ID token in the browser between a logout by a script and
// the navigation that follows: sealed, and in a cookie that no script can read.
// The URL carries whether there is a cookie, so that it can be used once.
type logoutHints struct {
	cookie session.CookieConfig
	name   string
	aeads  []cipher.AEAD // of the session keys; the first seals, all open
}

// newLogoutHints returns hints that are for one provider and one app alone.
func newLogoutHints(cookie session.CookieConfig, keys [][]byte, origin string, p ProviderConfig) (*logoutHints, error) {
	h := &logoutHints{cookie: cookie, name: cookie.Name("-logout")}
	bound, err := json.Marshal([]string{"logout hint", origin, p.Issuer, p.ClientID})
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		h.aeads = append(h.aeads, newAEAD(key, string(bound)))
	}
	return h, nil
}

// continuation is what the URL says that a script sends the browser to.
type continuation struct {
	ReturnTo string `json:"r"`
	User     string `json:"u,omitempty"`
	Cookie   bool   `json:"c,omitempty"` // the ID token is in the cookie
}

// put gives the browser the cookie of an ID token, unless it is too long, and
// returns what the URL has to say.
func (h *logoutHints) put(w http.ResponseWriter, hint logoutHint, returnTo string) (state string, err error) {
	next := continuation{ReturnTo: returnTo, User: hint.user}
	if token := hint.idToken.Reveal(); token != "" {
		if value := h.seal(h.name, packJWT(token)); len(value) <= maxLogoutHint {
			next.Cookie = true
			h.set(w, value, logoutHintLife)
		}
	}
	plain, err := json.Marshal(next)
	if err != nil {
		return "", err
	}
	return h.seal("state", plain), nil
}

// take returns what put was called with, and removes the cookie. It fails if
// the time is over or the cookie is gone, which means that it was taken before;
// the path to return to is then the one that is known.
func (h *logoutHints) take(w http.ResponseWriter, r *http.Request) (hint logoutHint, returnTo string, err error) {
	cookies := cookiesWithPrefix(r, h.name+"=", 2)
	var packed []byte
	for _, c := range cookies {
		if opened, err := h.open(h.name, c.value); err == nil {
			packed = opened
			h.set(w, "", -time.Second) // what does not open may be another App's, and expires soon
		}
	}
	plain, err := h.open("state", r.URL.Query().Get("state"))
	if err != nil {
		return hint, "/", fmt.Errorf("state: %w", err)
	}
	var next continuation
	if err := json.Unmarshal(plain, &next); err != nil {
		return hint, "/", fmt.Errorf("state: %w", err)
	}
	hint.user = next.User
	if len(cookies) == 1 && packed != nil {
		// Also that of the same logout in another request, if the user has
		// pressed twice.
		hint.idToken = session.Secret(unpackJWT(packed))
		return hint, next.ReturnTo, nil
	}
	if next.Cookie {
		return hint, next.ReturnTo, errors.New("the cookie with the ID token is gone: the URL was used before")
	}
	return hint, next.ReturnTo, nil
}

// continuationKey names the mark in the store of a request for which take has
// succeeded. Several texts decode to the same state.
func continuationKey(r *http.Request) string {
	sealed, _ := base64.RawURLEncoding.DecodeString(r.URL.Query().Get("state")) // take has decoded it
	sum := sha256.Sum256(sealed)
	return "logout-path:" + base64.RawURLEncoding.EncodeToString(sum[:16])
}

// seal encrypts a text for one purpose, with the time.
func (h *logoutHints) seal(purpose string, plain []byte) string {
	plain = append(binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixMilli())), plain...)
	return base64.RawURLEncoding.EncodeToString(h.aeads[0].Seal(nil, nil, plain, []byte(purpose)))
}

// open is the reverse of seal.
func (h *logoutHints) open(purpose, value string) ([]byte, error) {
	if len(value) > 2*maxLogoutHint {
		return nil, errors.New("it is too long")
	}
	sealed, err := base64.RawURLEncoding.DecodeString(value)
	if err != nil {
		return nil, errors.New("it is not base64")
	}
	for _, aead := range h.aeads {
		plain, err := aead.Open(nil, nil, sealed, []byte(purpose))
		if err != nil || len(plain) < 8 {
			continue
		}
		if age := time.Since(time.UnixMilli(int64(binary.BigEndian.Uint64(plain)))); age > logoutHintLife {
			return nil, fmt.Errorf("it is %v old", age.Round(time.Second))
		}
		return plain[8:], nil
	}
	return nil, errors.New("it was not made here")
}

func (h *logoutHints) set(w http.ResponseWriter, value string, life time.Duration) {
	http.SetCookie(w, &http.Cookie{
		Name: h.name, Value: value, Path: "/", MaxAge: int(life / time.Second),
		Secure: !h.cookie.InsecureHTTP, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	})
}

// packJWT takes the base64 out of a JWT, which makes it a quarter shorter. What
// is not a JWT in the usual form stays as it is, after a dot.
func packJWT(token string) []byte {
	var packed []byte
	for part := range strings.SplitSeq(token, ".") {
		b, err := base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || len(b) > 1<<16-1 || strings.Count(token, ".") != 2 {
			return append([]byte("."), token...)
		}
		packed = append(binary.BigEndian.AppendUint16(packed, uint16(len(b))), b...)
	}
	return append([]byte("j"), packed...)
}

// unpackJWT is the reverse of packJWT.
func unpackJWT(packed []byte) string {
	if len(packed) == 0 || packed[0] != 'j' {
		return strings.TrimPrefix(string(packed), ".")
	}
	var parts []string
	for rest := packed[1:]; len(rest) >= 2; {
		n := int(binary.BigEndian.Uint16(rest))
		if rest = rest[2:]; n > len(rest) {
			return ""
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(rest[:n]))
		rest = rest[n:]
	}
	return strings.Join(parts, ".")
}
