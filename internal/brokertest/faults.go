package brokertest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// Fault is a way in which a provider misbehaves, or behaves in an unusual way
// that the standards allow.
type Fault struct {
	Name           string
	hooks          func(p *Provider) devidp.Hooks
	undiscoverable bool // discovery fails
}

// claims is an ID token whose claims are edited.
func claims(name string, edit func(claims map[string]any)) Fault {
	return idToken(name, func(_ *Provider, _, c map[string]any) { edit(c) })
}

// without is an ID token without a claim.
func without(name, claim string) Fault {
	return claims(name, func(c map[string]any) { delete(c, claim) })
}

// with is an ID token in which a claim has another value.
func with(name, claim string, value any) Fault {
	return claims(name, func(c map[string]any) { c[claim] = value })
}

// idToken is an ID token whose header and claims are edited.
func idToken(name string, edit func(p *Provider, header, claims map[string]any)) Fault {
	return Fault{Name: name, hooks: func(p *Provider) devidp.Hooks {
		return devidp.Hooks{EditIDToken: func(h, c map[string]any) { edit(p, h, c) }}
	}}
}

// signed is an ID token that sign makes instead of the provider.
func signed(name string, sign func(p *Provider, header, claims map[string]any) (string, error)) Fault {
	return Fault{Name: name, hooks: func(p *Provider) devidp.Hooks {
		return devidp.Hooks{SignIDToken: func(h, c map[string]any) (string, error) { return sign(p, h, c) }}
	}}
}

func ago(d time.Duration) int64 { return time.Now().Add(-d).Unix() }

// IDTokenFaults are ID tokens that a login must reject, each for one reason
// (OpenID Connect Core, section 3.1.3.7).
var IDTokenFaults = []Fault{
	signed("payload changed after signing", func(p *Provider, h, c map[string]any) (string, error) {
		token, err := p.Sign(h, c)
		if err != nil {
			return "", err
		}
		parts := strings.Split(token, ".")
		c["sub"] = "mallory"
		forged, err := p.Sign(h, c)
		parts[1] = strings.Split(forged, ".")[1]
		return strings.Join(parts, "."), err
	}),
	signed("alg none", func(_ *Provider, h, c map[string]any) (string, error) {
		h["alg"] = "none"
		input, err := devidp.SigningInput(h, c)
		return input + ".", err
	}),
	signed("HS256 keyed with the public key", func(p *Provider, h, c map[string]any) (string, error) {
		der, err := x509.MarshalPKIXPublicKey(p.PublicKey())
		if err != nil {
			return "", err
		}
		h["alg"] = "HS256"
		input, err := devidp.SigningInput(h, c)
		mac := hmac.New(sha256.New, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		mac.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), err
	}),
	signed("HS256 keyed with the client secret", func(p *Provider, h, c map[string]any) (string, error) {
		h["alg"] = "HS256"
		input, err := devidp.SigningInput(h, c)
		mac := hmac.New(sha256.New, []byte(p.Client.Secret))
		mac.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), err
	}),
	signed("an algorithm the provider does not list", func(_ *Provider, h, c map[string]any) (string, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return "", err
		}
		h["alg"], h["jwk"] = "ES256", jose.JSONWebKey{Key: key.Public()}
		return signWith(key, jose.ES256, h, c)
	}),
	signed("a foreign key that the header holds",
		func(_ *Provider, h, c map[string]any) (string, error) { return SignWithForeignKey(h, c) }),
	signed("no JWT", func(*Provider, map[string]any, map[string]any) (string, error) { return "not.a.jwt", nil }),
	signed("claims that are no object",
		func(p *Provider, h, _ map[string]any) (string, error) { return p.SignPayload(h, []byte(`["sub"]`)) }),
	signed("a claim that occurs twice", func(p *Provider, h, c map[string]any) (string, error) {
		return p.SignPayload(h, []byte(strings.Replace(marshal(c), "{", `{"sub":"mallory",`, 1)))
	}),
	signed("a claim that occurs in two cases", func(p *Provider, h, c map[string]any) (string, error) {
		return p.SignPayload(h, []byte(strings.Replace(marshal(c), "{", `{"Sub":"mallory",`, 1)))
	}),
	with("another iss", "iss", "https://evil.example"),
	claims("iss with a slash", func(c map[string]any) { c["iss"] = fmt.Sprint(c["iss"], "/") }),
	without("no iss", "iss"),
	with("another aud", "aud", "other"),
	with("aud that contains our id", "aud", "spa2"),
	with("no aud in the list", "aud", []string{}),
	without("no aud", "aud"),
	with("an untrusted aud beside ours", "aud", []string{"spa", "other"}),
	with("another azp", "azp", "other"),
	with("azp that is no string", "azp", 1),
	without("no exp", "exp"),
	with("exp that is no number", "exp", "tomorrow"),
	claims("expired", func(c map[string]any) { c["exp"] = ago(5 * time.Minute) }),
	claims("not valid yet", func(c map[string]any) { c["nbf"] = ago(-3 * time.Minute) }),
	without("no iat", "iat"),
	with("iat that is no number", "iat", "now"),
	claims("issued long ago", func(c map[string]any) { c["iat"] = ago(time.Hour) }),
	claims("issued in the future", func(c map[string]any) { c["iat"] = ago(-10 * time.Minute) }),
	without("no nonce", "nonce"),
	with("another nonce", "nonce", "x"),
	claims("nonce in upper case", func(c map[string]any) { c["nonce"] = strings.ToUpper(fmt.Sprint(c["nonce"])) }),
	with("nonce that is null", "nonce", nil),
	with("wrong at_hash", "at_hash", "AAAAAAAAAAAAAAAAAAAAAA"),
	without("no sub", "sub"),
	with("empty sub", "sub", ""),
	with("sub that is a number", "sub", 17),
	with("sub that is a list", "sub", []string{"alice"}),
	with("a long sub", "sub", strings.Repeat("a", 256)),
	with("iss that is null", "iss", nil),
	with("sub that is null", "sub", nil),
	with("aud that is null", "aud", nil),
	with("aud with a number beside ours", "aud", []any{"spa", 7}),
	with("azp that is null", "azp", nil),
	with("exp that is null", "exp", nil),
	with("iat that is null", "iat", nil),
	claims("the claims of a signed userinfo response", func(c map[string]any) {
		for name := range c {
			if name != "iss" && name != "aud" && name != "sub" {
				delete(c, name)
			}
		}
	}),
	with("events of a logout token", "events",
		map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}),
	idToken("typ of a logout token", func(_ *Provider, h, _ map[string]any) { h["typ"] = "logout+jwt" }),
	idToken("typ of an access token", func(_ *Provider, h, _ map[string]any) { h["typ"] = "at+jwt" }),
	idToken("typ of an access token, long", func(_ *Provider, h, _ map[string]any) { h["typ"] = "application/at+jwt" }),
	idToken("unknown crit",
		func(_ *Provider, h, _ map[string]any) { h["crit"], h["exotic"] = []string{"exotic"}, true }),
}

// IDTokenOddities are ID tokens that are valid, but unusual.
var IDTokenOddities = []Fault{
	with("aud in a list", "aud", []string{"spa"}),
	with("our azp", "azp", "spa"),
	without("no at_hash", "at_hash"),
	without("no sid", "sid"),
	with("sid that is null", "sid", nil),
	with("acr that is a number", "acr", 1),
	with("auth_time that is null", "auth_time", nil),
	with("auth_time that is no number, without max_age in the request", "auth_time", "yesterday"),
	with("groups of several types", "groups", []any{1, nil, "x"}),
	with("claims that were not requested", "exotic", map[string]any{"deep": []any{1, nil, "x"}}),
	with("distributed claims, which are not fetched", "_claim_sources",
		map[string]any{"src": map[string]any{"endpoint": "http://127.0.0.1:1/claims"}}),
	claims("a clock a minute behind",
		func(c map[string]any) { c["iat"], c["exp"] = ago(time.Minute), ago(time.Minute-5*time.Minute) }),
	claims("a clock a minute ahead", func(c map[string]any) { c["iat"] = ago(-time.Minute) }),
	claims("dates with a fraction", func(c map[string]any) { c["iat"] = float64(c["iat"].(int64)) + 0.25 }),
	idToken("no typ", func(_ *Provider, h, _ map[string]any) { delete(h, "typ") }),
	idToken("typ in lower case", func(_ *Provider, h, _ map[string]any) { h["typ"] = "jwt" }),
	tokens("token_type in upper case", "authorization_code",
		func(body map[string]any) { body["token_type"] = "BEARER" }),
	tokens("expires_in in quotes", "authorization_code", func(body map[string]any) { body["expires_in"] = "300" }),
	tokens("no scope", "authorization_code", func(body map[string]any) { delete(body, "scope") }),
	tokens("unknown members", "authorization_code", func(body map[string]any) { body["exotic"] = []int{1} }),
}

// Faults of the claims about the authentication of the user.
var (
	LowerACR    = with("a lower acr", "acr", "silver")
	NoACR       = without("no acr", "acr")
	NoAuthTime  = without("no auth_time", "auth_time")
	OldAuthTime = claims("auth_time an hour ago", func(c map[string]any) { c["auth_time"] = ago(time.Hour) })
)

// UnknownKeyID is an ID token whose kid is not in the key set.
var UnknownKeyID = idToken("unknown kid", func(_ *Provider, h, _ map[string]any) { h["kid"] = rand.Text() })

// IDTokenReplayed repeats the first ID token that p issued.
func IDTokenReplayed(p *Provider) Fault {
	first := p.firstIDToken()
	return tokens("an ID token of another login", "authorization_code",
		func(body map[string]any) { body["id_token"] = first })
}

// tokens edits the successful token responses of one grant type.
func tokens(name, grantType string, edit func(body map[string]any)) Fault {
	return Fault{Name: name, hooks: func(*Provider) devidp.Hooks {
		return devidp.Hooks{EditTokenResponse: func(grant string, status int, body map[string]any) {
			if grant == grantType && status == http.StatusOK {
				edit(body)
			}
		}}
	}}
}

// LivesFor sets expires_in, in seconds, in the token response of a login.
func LivesFor(seconds int) Fault {
	return tokens("short life", "authorization_code", func(body map[string]any) { body["expires_in"] = seconds })
}

// ShortLived makes the access token of a login expire after a second.
var ShortLived = LivesFor(1)

// TokenResponseFaults are token responses that a login must reject.
var TokenResponseFaults = append([]Fault{
	tokens("no id_token", "authorization_code", func(body map[string]any) { delete(body, "id_token") }),
	tokens("no access_token", "authorization_code", func(body map[string]any) { delete(body, "access_token") }),
	tokens("access_token that is a number", "authorization_code",
		func(body map[string]any) { body["access_token"] = 17 }),
	tokens("token_type MAC", "authorization_code", func(body map[string]any) { body["token_type"] = "MAC" }),
	tokens("no token_type", "authorization_code", func(body map[string]any) { delete(body, "token_type") }),
	tokens("token_type DPoP, which was not agreed on", "authorization_code",
		func(body map[string]any) { body["token_type"] = "DPoP" }),
	responds("invalid_grant", "authorization_code", 400, `{"error":"invalid_grant"}`),
}, endpointFaults("authorization_code")...)

// endpointFaults are responses of a token endpoint that are no verdict on the
// code or refresh token.
func endpointFaults(grantType string) []Fault {
	var faults []Fault
	for _, code := range []string{
		"invalid_client", "unauthorized_client", "unsupported_grant_type",
		"invalid_scope", "invalid_request", "invalid_target",
	} {
		faults = append(faults, responds(code, grantType, 400, `{"error":"`+code+`"}`))
	}
	return append(faults,
		responds("invalid_client as 401", grantType, 401, `{"error":"invalid_client"}`),
		responds("use_dpop_nonce", grantType, 400, `{"error":"use_dpop_nonce"}`),
		responds("408", grantType, 408, ""),
		responds("429 with Retry-After", grantType, 429, `{"error":"slow_down"}`, "Retry-After", "1"),
		responds("500", grantType, 500, "oops"),
		responds("502 in HTML", grantType, 502, "<html>Bad gateway</html>"),
		responds("503 with a date", grantType, 503,
			"", "Retry-After", time.Now().Add(time.Second).UTC().Format(http.TimeFormat)),
		responds("500 with invalid_grant", grantType, 500, `{"error":"invalid_grant"}`),
		responds("temporarily_unavailable", grantType, 400, `{"error":"temporarily_unavailable"}`),
		responds("server_error", grantType, 400, `{"error":"server_error"}`),
		responds("HTML as 200", grantType, 200, "<html>Log in to the Wi-Fi</html>"),
		responds("a member that occurs twice", grantType, 200,
			`{"access_token":"x","token_type":"Bearer","expires_in":60,"token_type":"Bearer"}`),
		responds("a member that occurs in two cases", grantType, 200,
			`{"access_token":"x","Access_Token":"y","token_type":"Bearer","expires_in":60}`),
		responds("a member in another case", grantType, 200,
			`{"ACCESS_TOKEN":"x","token_type":"Bearer","expires_in":60}`),
		responds("a line end in the access token", grantType, 200,
			`{"access_token":"x\n","token_type":"Bearer","expires_in":60}`),
		responds("two objects", grantType, 200, `{"access_token":"x","token_type":"Bearer","expires_in":60}{}`),
		responds("truncated JSON", grantType, 200, `{"access_token":"x`),
		responds("an empty 200", grantType, 200, ""),
		responds("null", grantType, 200, "null"),
		intercept("a redirect", grantType, func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			// With 307 a client would repeat the body, which has credentials.
			http.Redirect(w, r, "http://"+r.Host+redirectPath, http.StatusTemporaryRedirect)
		}),
		responds("two megabytes", grantType, 200,
			`{"access_token":"x","token_type":"Bearer","padding":"`+strings.Repeat("x", 2<<20)+`"}`),
		intercept("a connection that is closed", grantType,
			func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { hangUp(w) }),
		intercept("a response that is aborted", grantType,
			func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
				w.Header().Set("Content-Length", "100")
				io.WriteString(w, `{"access`)
				hangUp(w)
			}),
	)
}

// RefreshFaults are refresh responses after which the session must go on.
var RefreshFaults = endpointFaults("refresh_token")

// RefreshRefusals are refresh responses that must end the session.
var RefreshRefusals = []Fault{
	responds("invalid_grant", "refresh_token", 400, `{"error":"invalid_grant","error_description":"x"}`),
	responds("invalid_grant as 403", "refresh_token", 403, `{"error":"invalid_grant"}`),
	with("an ID token for another subject", "sub", "mallory"),
	with("an ID token of another issuer", "iss", "https://evil.example"),
	with("an ID token for another client", "aud", "other"),
	signed("an ID token with a bad signature", func(p *Provider, h, c map[string]any) (string, error) {
		token, err := p.Sign(h, c)
		return token[:len(token)-8] + "AAAAAAAA", err
	}),
}

// RefreshOddities are refresh responses that are valid, but unusual.
var RefreshOddities = []Fault{
	tokens("no id_token", "refresh_token", func(body map[string]any) { delete(body, "id_token") }),
	tokens("no scope", "refresh_token", func(body map[string]any) { delete(body, "scope") }),
	tokens("a narrower scope", "refresh_token", func(body map[string]any) { body["scope"] = "openid" }),
	tokens("no expires_in", "refresh_token", func(body map[string]any) { delete(body, "expires_in") }),
	tokens("expires_in with a fraction", "refresh_token", func(body map[string]any) { body["expires_in"] = 300.5 }),
	claims("an ID token from eleven minutes ago", func(c map[string]any) { c["iat"] = ago(11 * time.Minute) }),
	claims("an ID token from two minutes ahead", func(c map[string]any) { c["iat"] = ago(-2 * time.Minute) }),
	claims("an ID token that has expired", func(c map[string]any) { c["exp"] = ago(2 * time.Minute) }),
	{
		Name:  "no new refresh token",
		hooks: func(*Provider) devidp.Hooks { return devidp.Hooks{KeepRefreshTokens: true} },
	},
	{Name: "keys that are unavailable", hooks: func(p *Provider) devidp.Hooks {
		h := idToken("", func(_ *Provider, header, _ map[string]any) { header["kid"] = rand.Text() }).hooks(p)
		h.Intercept = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, "/jwks") {
				http.Error(w, "down", http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(w, r)
		}
		return h
	}},
}

// RevocationFaults are transient errors of the revocation endpoint.
var RevocationFaults = []Fault{
	interceptPath("503", "/revoke", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
	}),
	interceptPath("a connection that is closed", "/revoke",
		func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { hangUp(w) }),
}

// ProviderDown closes every connection without a response.
var ProviderDown = Fault{Name: "down", undiscoverable: true, hooks: func(*Provider) devidp.Hooks {
	return devidp.Hooks{Intercept: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { hangUp(w) }}
}}

// Discovery edits the metadata, so that discovery must fail.
func Discovery(name string, edit func(metadata map[string]any)) Fault {
	return Fault{
		Name:           name,
		undiscoverable: true,
		hooks:          func(*Provider) devidp.Hooks { return devidp.Hooks{EditDiscovery: edit} },
	}
}

// discoveryResponse replaces the discovery response.
func discoveryResponse(name string, status int, body string) Fault {
	f := interceptPath(name, "/openid-configuration", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
	f.undiscoverable = true
	return f
}

// twice is metadata in which a member occurs twice.
func twice(name, member string) Fault {
	return Fault{Name: name, undiscoverable: true, hooks: func(p *Provider) devidp.Hooks {
		return devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.HasSuffix(r.URL.Path, "/openid-configuration") {
				next.ServeHTTP(w, r)
				return
			}
			recorded := httptest.NewRecorder()
			next.ServeHTTP(recorded, r)
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w,
				strings.Replace(recorded.Body.String(), "{", `{"`+member+`":"https://evil.example/token",`, 1))
		}}
	}}
}

// DiscoveryFaults are discovery responses that must be rejected (OpenID Connect
// Discovery, section 4.3).
var DiscoveryFaults = []Fault{
	Discovery("another issuer", func(m map[string]any) { m["issuer"] = "https://evil.example" }),
	Discovery("issuer with a slash", func(m map[string]any) { m["issuer"] = fmt.Sprint(m["issuer"], "/") }),
	Discovery("no issuer", func(m map[string]any) { delete(m, "issuer") }),
	Discovery("a token endpoint without TLS",
		func(m map[string]any) { m["token_endpoint"] = "http://id.example/token" }),
	Discovery("an authorization endpoint that is a script",
		func(m map[string]any) { m["authorization_endpoint"] = "javascript:alert(1)" }),
	Discovery("a logout endpoint without TLS",
		func(m map[string]any) { m["end_session_endpoint"] = "http://id.example/logout" }),
	Discovery("a revocation endpoint without TLS",
		func(m map[string]any) { m["revocation_endpoint"] = "http://id.example/revoke" }),
	Discovery("a userinfo endpoint without TLS",
		func(m map[string]any) { m["userinfo_endpoint"] = "http://id.example/userinfo" }),
	Discovery("keys without TLS", func(m map[string]any) { m["jwks_uri"] = "http://id.example/jwks" }),
	Discovery("no jwks_uri", func(m map[string]any) { delete(m, "jwks_uri") }),
	discoveryResponse("500", 500, "oops"),
	discoveryResponse("404", 404, "{}"),
	discoveryResponse("HTML", 200, "<html>"),
	discoveryResponse("huge", 200, `{"issuer":"`+strings.Repeat("x", 2<<20)+`"}`),
	discoveryResponse("a list", 200, "[]"),
	twice("a member that occurs twice", "token_endpoint"),
}

// LostResponse processes refresh requests, but closes the connection instead of
// sending the first n responses.
func LostResponse(n int) Fault {
	return intercept("lost response", "refresh_token", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if n == 0 {
			next.ServeHTTP(w, r)
			return
		}
		n--
		next.ServeHTTP(httptest.NewRecorder(), r)
		hangUp(w)
	})
}

// Hold delays all refresh requests until release is closed. It returns a
// channel that is closed when the first one arrives.
func (p *Provider) Hold(t testing.TB, release <-chan struct{}) (arrived <-chan struct{}) {
	first := make(chan struct{})
	p.Misbehave(t, intercept("hold", "refresh_token", func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		select {
		case <-first:
		default:
			close(first)
		}
		<-release
		next.ServeHTTP(w, r)
	}))
	return first
}

// responds is a fixed response to one grant type. The provider does not see the
// request.
func responds(name, grantType string, status int, body string, header ...string) Fault {
	return intercept(name, grantType, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", "application/json")
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
}

// interceptor is a devidp.Hooks.Intercept.
type interceptor = func(w http.ResponseWriter, r *http.Request, next http.Handler)

// intercept passes the token requests of one grant type to f.
func intercept(name, grantType string, f interceptor) Fault {
	return Fault{
		Name:  name,
		hooks: func(*Provider) devidp.Hooks { return devidp.Hooks{Intercept: onGrant(grantType, f)} },
	}
}

func onGrant(grantType string, f interceptor) interceptor {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/token") && r.PostFormValue("grant_type") == grantType {
			f(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// interceptPath passes the requests for a path to f.
func interceptPath(name, path string, f interceptor) Fault {
	return Fault{Name: name, hooks: func(*Provider) devidp.Hooks {
		return devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, path) {
				f(w, r, next)
				return
			}
			next.ServeHTTP(w, r)
		}}
	}}
}

// hangUp flushes what was written and closes the connection.
func hangUp(w http.ResponseWriter) {
	rc := http.NewResponseController(w)
	rc.Flush()
	if conn, _, err := rc.Hijack(); err == nil {
		conn.Close()
	}
}

var foreignKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// SignWithForeignKey signs with a key that is not the provider's, and puts the
// key into the header.
func SignWithForeignKey(header, claims map[string]any) (string, error) {
	key, err := foreignKey()
	if err != nil {
		return "", err
	}
	header["alg"], header["jwk"], header["jku"], header["x5u"] = "RS256", jose.JSONWebKey{
		Key: key.Public(),
	}, "http://127.0.0.1:1/jwks", "http://127.0.0.1:1/x5u"
	input, err := devidp.SigningInput(header, claims)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(input))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), err
}

func signWith(key any, alg jose.SignatureAlgorithm, header, claims map[string]any) (string, error) {
	options := new(jose.SignerOptions)
	for name, value := range maps.All(header) {
		if name != "alg" {
			options.WithHeader(jose.HeaderKey(name), value)
		}
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options)
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign([]byte(marshal(claims)))
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}
