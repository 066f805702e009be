package bff_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// user returns the claims of the user that the app sees.
func user(t *testing.T, b *bfftest.Browser) map[string]any {
	t.Helper()
	var got struct{ User map[string]any }
	b.Fetch("GET", "/bff/session").Decode(t, &got)
	return got.User
}

func withUserInfo(_ *app, cfg *bff.Config) { cfg.Provider.UserInfo = true }

func TestUserInfoAddsClaimsToTheIDToken(t *testing.T) {
	t.Parallel()
	for _, signed := range []bool{false, true} {
		t.Run(fmt.Sprint("signed ", signed), func(t *testing.T) {
			a := newAppWith(t, func(c *devidp.Config) { c.Clients[0].SignedUserInfo = signed }, withUserInfo)
			c := a.recordCalls(devidp.Hooks{EditUserinfo: func(claims map[string]any) {
				maps.Copy(claims, map[string]any{
					"department":     "wonder",
					"name":           "somebody else",
					"nonce":          "x",
					"amr":            []string{"hwk"},
					"_claim_sources": map[string]any{"x": map[string]any{"endpoint": a.provider.Issuer + "/elsewhere"}},
				})
			}})
			b := a.signedIn()
			got := user(t, b)
			if got["department"] != "wonder" || got["name"] != "Alice Liddell" ||
				got["sub"] != "alice" || got["nonce"] != nil || got["_claim_sources"] != nil ||
				got["amr"] != nil || got["aud"] != nil {
				t.Errorf("got %v", got)
			}
			requests := c.to("/userinfo")
			switch {
			case len(requests) != 1:
				t.Errorf("len(requests): got %d, want 1", len(requests))
			case !strings.HasPrefix(requests[0].header.Get("Authorization"), "Bearer "):
				t.Errorf("Authorization: got %q, want prefix Bearer ", requests[0].header.Get("Authorization"))
			}
			if len(c.to("/elsewhere")) > 0 {
				t.Error("claims were fetched from a URL in the response")
			}
		})
	}
}

func TestInvalidUserInfoFailsTheLogin(t *testing.T) {
	t.Parallel()
	respond := func(status int, contentType, body string) devidp.Hooks {
		return devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.HasSuffix(r.URL.Path, "/userinfo") {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(status)
			io.WriteString(w, body)
		}}
	}
	edited := func(edit func(map[string]any)) devidp.Hooks { return devidp.Hooks{EditUserinfo: edit} }
	for name, test := range map[string]struct {
		signed bool
		hooks  devidp.Hooks
		status int
		code   string
	}{
		"another sub": {false, edited(func(c map[string]any) { c["sub"] = "bob" }), 502, "login_invalid"},
		"no sub":      {false, edited(func(c map[string]any) { delete(c, "sub") }), 502, "login_invalid"},
		"a sub in a list": {
			false, edited(func(c map[string]any) { c["sub"] = []string{"alice"} }), 502,
			"login_invalid",
		},
		"signed, another sub": {true, edited(func(c map[string]any) { c["sub"] = "bob" }), 502, "login_invalid"},
		"signed, another aud": {true, edited(func(c map[string]any) { c["aud"] = "other" }), 502, "login_invalid"},
		"signed, no aud":      {true, edited(func(c map[string]any) { delete(c, "aud") }), 502, "login_invalid"},
		"signed, another iss": {
			true, edited(func(c map[string]any) { c["iss"] = "https://evil.example" }), 502,
			"login_invalid",
		},
		"signed by another key": {
			true,
			devidp.Hooks{SignUserinfo: brokertest.SignWithForeignKey},
			502,
			"login_invalid",
		},
		"unsigned": {true, devidp.Hooks{SignUserinfo: func(_, c map[string]any) (string, error) {
			input, err := devidp.SigningInput(map[string]any{"alg": "none"}, c)
			return input + ".", err
		}}, 502, "login_invalid"},
		"HTML":            {false, respond(200, "text/html", "<html>"), 502, "login_invalid"},
		"a token as JSON": {false, respond(200, "application/json", "a.b.c"), 502, "login_invalid"},
		"no type":         {false, respond(200, "", `{"sub":"alice"}`), 502, "login_invalid"},
		"a list":          {false, respond(200, "application/json", `[]`), 502, "login_invalid"},
		"null":            {false, respond(200, "application/json", `null`), 502, "login_invalid"},
		"sub twice": {
			false, respond(200, "application/json", `{"sub":"alice","sub":"bob"}`), 502,
			"login_invalid",
		},
		"Sub and sub": {
			false, respond(200, "application/json", `{"Sub":"alice","sub":"alice"}`), 502,
			"login_invalid",
		},
		"cut": {false, respond(200, "application/json", `{"sub":"alice"`), 502, "login_invalid"},
		"too many claims": {
			false, edited(func(c map[string]any) { c["groups"] = strings.Repeat("g", 70<<10) }),
			502, "login_invalid",
		},
		"huge": {
			false,
			respond(200, "application/json", `{"sub":"alice","x":"`+strings.Repeat("x", 2<<20)+`"}`),
			503, "provider_unavailable",
		},
		"a redirect": {false, respond(302, "application/json", `{"sub":"alice"}`), 502, "login_refused"},
		"401":        {false, respond(401, "application/json", `{"sub":"alice"}`), 502, "login_refused"},
		"500":        {false, respond(500, "application/json", `{"sub":"alice"}`), 503, "provider_unavailable"},
		"an ID token": {
			true,
			devidp.Hooks{SignUserinfo: nil, Intercept: nil, EditUserinfo: func(c map[string]any) { c["sub"] = nil }},
			502,
			"login_invalid",
		},
		"a connection lost": {false,
			devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.HasSuffix(r.URL.Path, "/userinfo") {
					panic(http.ErrAbortHandler)
				}
				next.ServeHTTP(w, r)
			}}, 503, "provider_unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAppWith(t, func(c *devidp.Config) { c.Clients[0].SignedUserInfo = test.signed }, withUserInfo)
			b := a.signedIn()
			a.recordCalls(test.hooks)
			wantPage(t, b.SignIn("alice", ""), test.status, test.code)
			a.wantSession(b, "alice")
		})
	}
}

// A call waits for new tokens. While the userinfo endpoint does not respond, it
// gets them without new claims.
func TestRefreshWithoutUserInfoIsInTime(t *testing.T) {
	t.Parallel()
	a := newApp(t, withUserInfo)
	b := a.expired()
	a.recordCalls(replaceResponse("/userinfo", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	wantOK(t, b.Fetch("GET", "/api/x"))
	if email := user(t, b)["email"]; email == nil {
		t.Error("the claims are lost")
	}
}

func TestOtherJWTsAreNoSignedUserInfo(t *testing.T) {
	t.Parallel()
	a := newAppWith(t, func(c *devidp.Config) { c.Clients[0].SignedUserInfo = true }, withUserInfo)
	for _, typ := range []string{"at+jwt", "logout+jwt", "dpop+jwt"} {
		a.recordCalls(devidp.Hooks{SignUserinfo: func(_, claims map[string]any) (string, error) {
			return a.provider.Sign(map[string]any{"typ": typ}, claims)
		}})
		wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
	}
}

func TestUserInfoWithADPoPProof(t *testing.T) {
	t.Parallel()
	a, _ := newBoundApp(t, withUserInfo)
	c := a.recordCalls(devidp.Hooks{})
	a.signedIn()
	requests := c.to("/userinfo")
	switch {
	case len(requests) != 1:
		t.Errorf("requests: len(requests): got %d, want 1", len(requests))
	case !strings.HasPrefix(requests[0].header.Get("Authorization"), "DPoP "):
		t.Errorf("requests: Authorization: got %q, want prefix DPoP ", requests[0].header.Get("Authorization"))
	case len(requests[0].header.Values("DPoP")) != 1:
		t.Errorf("requests: len(DPoP): got %d, want 1", len(requests[0].header.Values("DPoP")))
	}
	t.Run("that requires a nonce", func(t *testing.T) {
		c := a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, "/userinfo") {
				if _, claims := unverified(t, r.Header.Get("DPoP")); claims["nonce"] != "for-userinfo" {
					w.Header().Set("DPoP-Nonce", "for-userinfo")
					w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
					w.WriteHeader(401)
					return
				}
			}
			next.ServeHTTP(w, r)
		}})
		a.signedIn()
		if n := len(c.to("/userinfo")); n != 2 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestAppSeesOnlyConfiguredClaims(t *testing.T) {
	t.Parallel()
	var seen string
	a := newApp(t, func(a *app, cfg *bff.Config) {
		cfg.Claims = bff.Claims{
			Allow: []string{"sub", "roles", "org", "missing"},
			Map: map[string]string{
				"roles":   "realm_access.roles",
				"org":     "https://app.example/claims.org",
				"deep":    "a.b.c",
				"nothing": "a.x",
			},
		}
		cfg.Routes[0].Headers = map[string]string{"X-Email": "email", "X-Roles": "roles", "X-Deep": "deep"}
		cfg.Routes[0].Require = bff.Require{Claims: map[string][]string{"roles": {"admin"}}}
	})
	a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
		claims["realm_access"] = map[string]any{"roles": []string{"admin", "user"}}
		claims["https://app.example/claims.org"] = "wonderland"
		claims["a.b"] = map[string]any{"c": "deep"}
	}})
	b := a.signedIn()
	got := user(t, b)
	if len(got) != 3 {
		t.Errorf("claims of the app: len(got): got %d, want 3", len(got))
	}
	if got["sub"] != "alice" {
		t.Errorf("claims of the app: sub: got %v, want alice", got["sub"])
	}
	if fmt.Sprint(got["roles"]) != "[admin user]" {
		t.Errorf("claims of the app: roles: got %q, want [admin user]", fmt.Sprint(got["roles"]))
	}
	if got["org"] != "wonderland" {
		t.Errorf("claims of the app: org: got %v, want wonderland", got["org"])
	}
	e := echoed(t, b.Fetch("GET", "/api/x"))
	switch seen = e.Header.Get("X-Email"); {
	case seen != "alice@example.com":
		t.Errorf("headers of the upstream: seen: got %v, want alice@example.com", seen)
	case e.Header.Get("X-Roles") != "admin,user":
		t.Errorf("headers of the upstream: X-Roles: got %q, want admin,user", e.Header.Get("X-Roles"))
	case e.Header.Get("X-Deep") != "deep":
		t.Errorf("headers of the upstream: X-Deep: got %q, want deep", e.Header.Get("X-Deep"))
	}
}

func TestInvalidClaimMappings(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]map[string]string{
		"sub":       {"sub": "email"},
		"iss":       {"iss": "x"},
		"no name":   {"": "x"},
		"no source": {"x": ""},
	} {
		_, err := bff.New(bff.Config{PublicURL: "https://app.example", Claims: bff.Claims{Map: m}})
		if err == nil || !strings.Contains(err.Error(), "Claims.Map") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestRefreshedIDTokenUpdatesTheClaims(t *testing.T) {
	t.Parallel()
	for _, userinfo := range []bool{false, true} {
		a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.UserInfo = userinfo })
		b := a.signedIn()
		before := user(t, b)
		a.recordCalls(devidp.Hooks{
			EditIDToken: func(_, claims map[string]any) {
				claims["groups"] = []string{"new"}
				for _, name := range []string{"auth_time", "acr", "name"} {
					delete(claims, name)
				}
			},
			EditUserinfo: func(claims map[string]any) { claims["name"] = "Alice P." },
		})
		wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
		after := user(t, b)
		wantName := any(nil)
		if userinfo {
			wantName = "Alice P."
		}
		if fmt.Sprint(after["groups"]) != "[new]" {
			t.Errorf("userinfo %v: groups: got %q, want [new]", userinfo, fmt.Sprint(after["groups"]))
		}
		if after["auth_time"] != before["auth_time"] {
			t.Errorf("userinfo %v: auth_time: got %v, want %v", userinfo, after["auth_time"], before["auth_time"])
		}
		if after["acr"] != before["acr"] {
			t.Errorf("userinfo %v: acr: got %v, want %v", userinfo, after["acr"], before["acr"])
		}
		if after["name"] != wantName {
			t.Errorf("userinfo %v: name: got %v, want %v", userinfo, after["name"], wantName)
		}
	}
	t.Run("but not acr and auth_time", func(t *testing.T) {
		a := newApp(t, nil)
		b := a.signedIn()
		before := user(t, b)
		a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
			claims["auth_time"] = time.Now().Add(time.Minute).Unix()
			claims["acr"] = "gold"
			claims["amr"] = []string{"hwk"}
		}})
		wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
		after := user(t, b)
		if after["auth_time"] != before["auth_time"] || after["acr"] != before["acr"] || after["amr"] != nil {
			t.Errorf("before %v, after %v", before, after)
		}
	})
	t.Run("but not while the userinfo endpoint fails", func(t *testing.T) {
		a := newApp(t, withUserInfo)
		b := a.signedIn()
		before := fmt.Sprint(user(t, b))
		a.recordCalls(devidp.Hooks{
			EditUserinfo: func(claims map[string]any) { claims["sub"] = "bob" },
			EditIDToken:  func(_, claims map[string]any) { claims["groups"] = "new" },
		})
		wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
		if after := fmt.Sprint(user(t, b)); after != before {
			t.Errorf("before %s, after %s", before, after)
		}
	})
}

// OpenID Connect Core 12.2: an ID token of another subject or login ends the
// session.
func TestRefreshedIDTokenMustMatchTheSession(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for name, test := range map[string]struct {
		edit  func(claims map[string]any, nonce any)
		lives bool
	}{
		"no nonce":          {func(claims map[string]any, _ any) { delete(claims, "nonce") }, true},
		"the nonce of old":  {func(claims map[string]any, nonce any) { claims["nonce"] = nonce }, true},
		"another nonce":     {func(claims map[string]any, _ any) { claims["nonce"] = "another" }, false},
		"another subject":   {func(claims map[string]any, _ any) { claims["sub"] = "bob" }, false},
		"another issuer":    {func(claims map[string]any, _ any) { claims["iss"] = "https://evil.example" }, false},
		"another audience":  {func(claims map[string]any, _ any) { claims["aud"] = "other" }, false},
		"a second audience": {func(claims map[string]any, _ any) { claims["aud"] = []string{"spa", "other"} }, false},
		"another azp":       {func(claims map[string]any, _ any) { claims["azp"] = "other" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			var nonce any
			a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) { nonce = claims["nonce"] }})
			b := a.signedIn()
			a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) { test.edit(claims, nonce) }})
			resp := b.Fetch("POST", "/bff/session/refresh")
			if test.lives {
				wantOK(t, resp)
				a.wantSession(b, "alice")
			} else {
				wantProblem(t, resp, 401, "not_signed_in")
				a.wantSession(b, "")
			}
		})
	}
}

// A claim that is too long for a header is omitted. The record of the session
// has no such limit.
func TestLargeClaimsAreHandled(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes[0].Headers = map[string]string{"X-Groups": "groups", "X-User": "sub"}
	})
	groups := make([]string, 3000)
	for i := range groups {
		groups[i] = fmt.Sprintf("group-%06d", i)
	}
	a.recordCalls(devidp.Hooks{EditIDToken: func(_, claims map[string]any) { claims["groups"] = groups }})
	b := a.signedIn()
	for _, c := range b.Cookies() {
		if len(c.Name)+len(c.Value) > 400 {
			t.Errorf("cookie %s: got %d bytes", c.Name, len(c.Value))
		}
	}
	e := echoed(t, b.Fetch("GET", "/api/x"))
	if e.Header.Get("X-User") != "alice" || e.Header.Get("X-Groups") != "" {
		t.Errorf("the upstream got %d bytes of groups", len(e.Header.Get("X-Groups")))
	}
	if !strings.Contains(a.logs.String(), "X-Groups") {
		t.Error("the omitted claim is not logged")
	}
	a.recordCalls(devidp.Hooks{
		EditIDToken: func(_, claims map[string]any) { claims["groups"] = slices.Repeat(groups, 3) },
	})
	wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
}

// Any invalid token response fails the request cleanly and soon.
func TestHostileTokenResponses(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.Wait = 2 * time.Second })
	token := func() string {
		return fmt.Sprintf(`{"access_token":"a","token_type":"Bearer","expires_in":60,"id_token":%q}`, "e30.e30.e30")
	}
	for name, body := range map[string]string{
		"deep":              `{"access_token":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`,
		"a string":          `"x"`,
		"numbers":           `{"access_token":1,"token_type":2,"id_token":3}`,
		"null":              `null`,
		"an empty object":   `{}`,
		"an ID token of {}": token(),
		"NUL":               "\x00",
		"not UTF-8":         "{\"access_token\":\"\xff\xfe\"}",
		"an error with 200": `{"error":"invalid_grant","error_description":"no\u0007more authentication_expired"}`,
	} {
		b := a.signedIn()
		a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.HasSuffix(r.URL.Path, "/token") {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, body)
		}})
		began := time.Now()
		wantPage(t, b.SignIn("alice", ""), 502, "login_invalid")
		if resp := b.Fetch("POST", "/bff/session/refresh"); name == "an ID token of {}" {
			wantOK(t, resp) // the rest of the response is valid, and the old refresh token is spent
		} else {
			wantProblem(t, resp, 503, "provider_unavailable")
		}
		a.wantSession(b, "alice")
		if d := time.Since(began); d > 30*time.Second {
			t.Errorf("%s: took %v", name, d)
		}
		a.provider.Behave()
	}
	want := `no access_token: the provider responded with 200 \"invalid_grant\" \"no more authentication_expired\"`
	if !strings.Contains(a.logs.String(), want) {
		t.Errorf("the log lacks %s", want)
	}
}

// A token response that arrives too slowly times out, wherever it stalls.
func TestSlowTokenResponseTimesOut(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Provider.UserInfo, cfg.Provider.Wait = true, 2*time.Second
		cfg.Provider.HTTPClient = &http.Client{Transport: httpClient.Transport, Timeout: 2 * time.Second}
	})
	slow := func(path string) devidp.Hooks {
		return devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, path) {
				select {
				case <-r.Context().Done():
				case <-time.After(time.Minute):
				}
			}
			next.ServeHTTP(w, r)
		}}
	}
	for path, code := range map[string]string{
		"/par":      "provider_unavailable",
		"/token":    "provider_unavailable",
		"/userinfo": "provider_unavailable",
	} {
		b := a.signedIn()
		u := ""
		if path != "/par" {
			u = b.AuthResponse("alice", "prompt=login").Header.Get("Location")
		}
		a.recordCalls(slow(path))
		began := time.Now()
		if path == "/par" {
			wantPage(t, b.Navigate("/bff/login"), 503, code)
		} else {
			wantPage(t, b.Navigate(u), 503, code)
		}
		if d := time.Since(began); d > 30*time.Second {
			t.Errorf("%s: took %v", path, d)
		}
		a.provider.Behave()
		a.wantSession(b, "alice")
	}
	b := a.signedIn()
	a.recordCalls(slow("/revoke"))
	if resp := b.Submit("/bff/logout", nil); resp.StatusCode != 303 {
		t.Errorf("logout: got %d, want 303", resp.StatusCode)
	}
}

// The log has the error text of a provider, without the secrets it may quote.
func TestProviderErrorsAreLoggedWithoutSecrets(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.ClientAuth = "client_secret_post" })
	b := a.signedIn()
	a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.PostFormValue("grant_type") != "refresh_token" {
			next.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(400)
		json.NewEncoder(w).Encode(map[string]string{"error": "invalid_scope", "error_description": fmt.Sprintf(
			"no scope <%s> for %s of %s, see eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl",
			"read", r.PostForm.Get("refresh_token"), r.PostForm.Get("client_secret"))})
	}})
	// the end of the test searches its log for secrets
	wantProblem(t, b.Fetch("POST", "/bff/session/refresh"), 503, "provider_unavailable")
	logs := a.logs.String()
	if !strings.Contains(logs, "no scope <read> for … of …, see …") &&
		!strings.Contains(logs, `no scope \u003cread\u003e for … of …, see …`) {
		t.Errorf("the log does not name the cause: %s", logs)
	}
}

// A provider, or a proxy in front of it, may quote a secret in an error.
func TestSecretsQuotedByTheProviderAreNotLogged(t *testing.T) {
	t.Parallel()
	for name, respond := range map[string]func(form url.Values, secret string) (string, string){
		"a refresh token in the code": func(form url.Values, _ string) (string, string) {
			return `{"error":"unknown token ` + form.Get("refresh_token")[:32] + `"}`, form.Get("refresh_token")[:32]
		},
		"the client secret in the code": func(_ url.Values, secret string) (string, string) {
			return string(must(json.Marshal(map[string]string{"error": "bad secret " + secret}))), secret
		},
		"the client secret where the text is cut": func(_ url.Values, secret string) (string, string) {
			most := secret[:len(secret)-1]
			return string(must(json.Marshal(map[string]string{
				"error":             "server_error",
				"error_description": strings.Repeat("x ", 150)[:300-len(most)] + secret,
			}))), strings.ReplaceAll(most, `"`, ``)
		},
		"the client secret as it is in a form": func(_ url.Values, secret string) (string, string) {
			text := url.QueryEscape(secret)
			return string(must(json.Marshal(map[string]string{
				"error":             "server_error",
				"error_description": "bad request: client_secret=" + text,
			}))), "3Awith%2Fodd%2Bcharacters%25%26"
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Provider.ClientAuth = "client_secret_post" })
			b := a.signedIn()
			var leaked string
			a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.PostFormValue("grant_type") != "refresh_token" {
					next.ServeHTTP(w, r)
					return
				}
				body, secret := respond(r.PostForm, a.provider.Client.Secret)
				leaked = secret
				w.WriteHeader(400)
				io.WriteString(w, body)
			}})
			b.Fetch("POST", "/bff/session/refresh")
			if leaked == "" {
				t.Fatal("the provider got no refresh request")
			}
			if strings.Contains(strings.ReplaceAll(a.logs.String(), `\u0026`, "&"), leaked) {
				t.Errorf("the log contains the secret %q", leaked)
			}
		})
	}
}
