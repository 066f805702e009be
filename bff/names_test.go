package bff_test

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// withMember appends a member, in its own spelling, to the members of an
// object.
func withMember(object map[string]any, member string) []byte {
	b, err := json.Marshal(object)
	if err != nil {
		panic(err) // the member of a test
	}
	return []byte(strings.TrimSuffix(string(b), "}") + "," + member + "}")
}

// resign signs claims with an additional member, or with renamed members.
func (a *app) resign(more string, rename map[string]string) func(header, claims map[string]any) (string, error) {
	return func(header, claims map[string]any) (string, error) {
		for from, to := range rename {
			claims[to] = claims[from]
			delete(claims, from)
		}
		if more == "" {
			return a.provider.Sign(header, claims)
		}
		return a.provider.SignPayload(header, withMember(claims, more))
	}
}

// encoding/json decodes ſub and SUB as sub. Names are compared octet by octet,
// so no such member replaces the real one.
func TestTokenMemberNamesAreExact(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		more   string
		rename map[string]string
	}{
		"ſub beside sub":      {more: `"ſub":"mallory"`},
		"SUB beside sub":      {more: `"SUB":"mallory"`},
		"sub escaped, twice":  {more: `"\u0073ub":"mallory"`},
		"ſub for sub":         {rename: map[string]string{"sub": "ſub"}},
		"SUB for sub":         {rename: map[string]string{"sub": "SUB"}},
		"ISS for iss":         {rename: map[string]string{"iss": "ISS"}},
		"iſſ for iss":         {rename: map[string]string{"iss": "iſſ"}},
		"EXP for exp":         {rename: map[string]string{"exp": "EXP"}},
		"Aud for aud":         {rename: map[string]string{"aud": "Aud"}},
		"IAT for iat":         {rename: map[string]string{"iat": "IAT"}},
		"a name with a blank": {rename: map[string]string{"sub": "sub "}},
		"a name with NUL":     {rename: map[string]string{"sub": "sub\x00"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, nil)
			b, sid := a.signedInWithSID()
			a.recordCalls(devidp.Hooks{SignIDToken: a.resign(test.more, test.rename)})
			stranger := a.browser()
			wantPage(t, stranger.SignIn("bob", ""), 502, "login_invalid")
			a.wantSession(stranger, "")

			rename := map[string]string{}
			for from, to := range test.rename {
				rename[from] = to
			}
			more := strings.ReplaceAll(test.more, "mallory", "alice") // the user of the session if it were accepted
			token := a.logoutToken("carol", "", devidp.Hooks{SignLogoutToken: a.resign(more, rename)})
			if got := a.sendLogoutToken(url.Values{"logout_token": {token}}).StatusCode; got != 400 {
				t.Errorf("a logout token: got %d, want 400", got)
			}
			a.provider.Behave()
			a.wantSession(b, "alice")
			if sid == "" {
				t.Error("no sid")
			}
		})
	}
	t.Run("sid in another case is no sid", func(t *testing.T) {
		t.Parallel()
		a := newApp(t, nil)
		b, sid := a.signedInWithSID()
		token := a.logoutToken("carol", "", devidp.Hooks{SignLogoutToken: a.resign(`"SID":"`+sid+`"`, nil)})
		a.sendLogoutToken(url.Values{"logout_token": {token}})
		a.wantSession(b, "alice")
	})
}

// Names that differ in case are different names. Unused ones may occur any
// number of times.
func TestUnusedClaimsAreIgnored(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, more := range []string{
		`"Groups":["a"],"groups":["b"],"GROUPS":7`,
		`"Name":"x","EMAIL":null,"phone_number_verified":"yes"`,
		`"_claim_names":[],"_claim_sources":7`,
		`"_claim_names":{"address":"nowhere"}`,
		`"":"","a.b":1,"deep":[[[[[[[[[[[[[[[[{}]]]]]]]]]]]]]]]]`,
		`"big":123456789012345678901234567890,"small":1e-400`,
		`"c_hash":7,"s_hash":[],"jti":7,"typ":7,"amr":7`,
		`"updated_at":"yesterday","birthdate":0`,
	} {
		a.recordCalls(devidp.Hooks{SignIDToken: a.resign(more, nil)})
		b := a.browser()
		if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
			t.Errorf("%s: got %d, want 303:\n%v", more, resp.StatusCode, a.logs.lines(t, "request"))
		}
		wantOK(t, b.Fetch("POST", "/bff/session/refresh"))
		a.wantSession(b, "alice")
	}
	a.logs.wantNo(t, "ID token of a refresh not verified; the one before is kept")
	a.provider.Behave()
	for _, header := range []map[string]any{
		{"jwk": 7}, {"x5c": "x"}, {"jku": 7}, {"x5t": []int{1}}, {"cty": 7},
		{"Alg": 7, "KID": 7, "Crit": []string{"x"}, "exotic": true},
	} {
		if header["KID"] != nil {
			delete(header, "Alg")
			delete(header, "KID")
		}
		a.recordCalls(devidp.Hooks{EditIDToken: func(h, _ map[string]any) {
			for name, value := range header {
				h[name] = value
			}
		}})
		if resp := a.browser().SignIn("alice", ""); resp.StatusCode != 303 {
			t.Errorf("header %v: got %d, want 303:\n%v", header, resp.StatusCode, a.logs.lines(t, "request"))
		}
	}
}

// Claims of the user keep their names, and their numbers every digit.
func TestClaimsArePassedOnUnchanged(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	a.recordCalls(devidp.Hooks{SignIDToken: a.resign(`"SID":"S-1-5-21","big":12345678901234567890123`, nil)})
	b := a.signedIn()
	text := b.Fetch("GET", "/bff/session").Text
	for _, want := range []string{`"SID":"S-1-5-21"`, `"big":12345678901234567890123`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
}

// Members of a token response are accepted under their exact names only, and
// once.
func TestTokenResponseMemberNamesAreExact(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"Error":              `{"Error":"invalid_grant"}`,
		"ERROR":              `{"ERROR":"invalid_grant"}`,
		"error twice":        `{"error":"server_error","error":"invalid_grant"}`,
		"error in two cases": `{"error":"server_error","ERROR":"invalid_grant"}`,
		"error in a list":    `{"error":["invalid_grant"]}`,
		"error in an object": `{"error":{"error":"invalid_grant"}}`,
		"error and junk":     `{"error":"invalid_grant"} junk`,
		"cut":                `{"error":"invalid_grant"`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, nil)
			b := a.signedIn()
			a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.PostFormValue("grant_type") != "refresh_token" {
					next.ServeHTTP(w, r)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(400)
				io.WriteString(w, body)
			}})
			wantProblem(t, b.Fetch("POST", "/bff/session/refresh"), 503, "provider_unavailable")
			a.provider.Behave()
			a.wantSession(b, "alice")
		})
	}
}

// In metadata too, a member in another case is another member.
func TestMetadataMemberNamesAreExact(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(m map[string]any){
		"ISSUER":            func(m map[string]any) { m["ISSUER"] = "https://evil.example" },
		"iſſuer":            func(m map[string]any) { m["iſſuer"] = "https://evil.example" },
		"Token_Endpoint":    func(m map[string]any) { m["Token_Endpoint"] = "https://evil.example/token" },
		"JWKS_URI":          func(m map[string]any) { m["JWKS_URI"] = 7 },
		"jwkſ_uri":          func(m map[string]any) { m["jwkſ_uri"] = "https://evil.example/jwks" },
		"Userinfo_endpoint": func(m map[string]any) { m["Userinfo_endpoint"] = []int{} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t, func(a *app, _ *bff.Config) { a.provider.SetHooks(devidp.Hooks{EditDiscovery: edit}) })
			a.signedIn()
		})
	}
}

// The header of a JWT selects the key that verifies it.
func TestJOSEHeaderMemberNamesAreExact(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, header := range []string{
		`{"alg":"none","ALG":"RS256"}`, `{"ALG":"RS256"}`, `{"alg":"RS256","alg":"none"}`,
		`{"alg":"RS256","Alg":"none"}`, `{"alg":7}`, `{"alg":null}`, `{}`, `null`, `[]`,
		`{"alg":"RS256","kid":7}`, `{"alg":"RS256","typ":7}`,
		`{"alg":"RS256","crit":[]}`, `{"alg":"RS256","crit":["b64"],"b64":false}`,
	} {
		a.recordCalls(devidp.Hooks{SignIDToken: func(h, c map[string]any) (string, error) {
			token, err := a.provider.Sign(h, c)
			_, rest, _ := strings.Cut(token, ".")
			return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + rest, err
		}})
		wantPage(t, a.browser().SignIn("alice", ""), 502, "login_invalid")
	}
}
