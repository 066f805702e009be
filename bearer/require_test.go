package bearer_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

func TestRequireAny(t *testing.T) {
	h := newIssuer(ecKey().jwk()).verifier(t).Handler(bearer.RequireAny("orders:read", "orders:admin")(whoami))
	for scope, status := range map[string]int{"orders:read": 200, "x orders:admin": 200,
		"orders:read orders:admin": 200, "orders": 403, "": 403, "orders:readorders:admin": 403} {
		resp := send(h, "", "Bearer "+ecKey().token(object{"scope": scope}))
		if resp.StatusCode != status {
			t.Errorf("%q: got %d, want %d", scope, resp.StatusCode, status)
		}
		want := `Bearer error="insufficient_scope", ` +
			`error_description="the token has none of the scopes orders:read orders:admin", ` +
			`scope="orders:read orders:admin"`
		if got := resp.Header.Get("WWW-Authenticate"); status == 403 && got != want {
			t.Errorf("got the challenge %s, want %s", got, want)
		}
	}
}

func TestRequireACR(t *testing.T) {
	v := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) { c.Realm = "api" })
	h := v.Handler(bearer.RequireACR("gold", "silver")(whoami))
	for _, test := range []struct {
		acr    any
		status int
	}{{"gold", 200}, {"silver", 200}, {"bronze", 401}, {"Gold", 401}, {"gold silver", 401}, {"", 401}, {nil, 401}} {
		resp := send(h, "", "Bearer "+ecKey().token(object{"acr": test.acr}))
		if resp.StatusCode != test.status {
			t.Errorf("acr %v: got %d, want %d", test.acr, resp.StatusCode, test.status)
		}
		want := `Bearer realm="api", error="insufficient_user_authentication", ` +
			`error_description="the user must sign in with another method", acr_values="gold silver"`
		if got := resp.Header.Get("WWW-Authenticate"); test.status == 401 && got != want {
			t.Errorf("got the challenge %s, want %s", got, want)
		}
		if test.status == 401 {
			wantProblem(t, resp, 401)
		}
	}
	wantInvalid(t, v, ecKey().token(object{"acr": []string{"gold"}}), badClaims)
}

func TestRequireFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) { c.Leeway = 10 * time.Second })
		h := v.Handler(bearer.RequireFresh(5*time.Minute + time.Millisecond)(whoami))
		now := func(h http.Handler, authTime any) int {
			resp := send(h, "", "Bearer "+ecKey().token(object{"auth_time": authTime}))
			want := `Bearer error="insufficient_user_authentication", ` +
				`error_description="the user signed in too long ago", max_age="300"`
			if got := resp.Header.Get("WWW-Authenticate"); resp.StatusCode == 401 && got != want {
				t.Errorf("got the challenge %s, want %s", got, want)
			}
			return resp.StatusCode
		}
		for age, status := range map[time.Duration]int{0: 200, 5 * time.Minute: 200,
			5*time.Minute + 10*time.Second: 200, 5*time.Minute +
				11*time.Second: 401, -10 * time.Second: 200, -11 * time.Second: 401} {
			if got := now(h, time.Now().Add(-age).Unix()); got != status {
				t.Errorf("signed in %v ago: got %d, want %d", age, got, status)
			}
		}
		if got := now(h, nil); got != 401 {
			t.Errorf("unknown time: got %d, want 401", got)
		}
		at := time.Now().Unix()
		time.Sleep(time.Second)
		if resp := send(v.Handler(bearer.RequireFresh(0)(whoami)), "",
			"Bearer "+ecKey().token(object{"auth_time": at})); resp.StatusCode != 200 {
			t.Errorf("with 0, who has just signed in: got %d, want 200", resp.StatusCode)
		}
	})
}

func TestRequireFunctionsOutsideHandler(t *testing.T) {
	for name, wrap := range map[string]func(http.Handler) http.Handler{
		"RequireAny": bearer.RequireAny("a"), "RequireACR": bearer.RequireACR("a"),
		"RequireFresh": bearer.RequireFresh(time.Hour),
	} {
		if resp := send(wrap(whoami), "", "Bearer "+ecKey().token()); resp.StatusCode != 401 {
			t.Errorf("%s: got %d, want 401", name, resp.StatusCode)
		}
	}
	for name, call := range map[string]func(){
		"RequireAny of nothing":             func() { bearer.RequireAny() },
		"RequireACR of nothing":             func() { bearer.RequireACR() },
		"RequireACR with a space":           func() { bearer.RequireACR("a b") },
		"RequireFresh of less than nothing": func() { bearer.RequireFresh(-1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s does not panic", name)
				}
			}()
			call()
		}()
	}
}

func TestMetadata(t *testing.T) {
	get := func(v *bearer.Verifier) (string, object) {
		t.Helper()
		mux := http.NewServeMux()
		pattern, h := v.Metadata()
		mux.Handle(pattern, h)
		w := httptest.NewRecorder()
		_, path, _ := strings.Cut(pattern, " ")
		mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		var got object
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 ||
			w.Header().Get("Content-Type") != "application/json" {
			t.Fatalf("GET %s: got %d %s, %v", path, w.Code, w.Body, err)
		}
		return path, got
	}
	v := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) {
		c.Resource, c.Scopes = "https://api.example/v1/orders/", []string{"orders:read", "orders:write"}
	})
	path, got := get(v)
	if want := "/.well-known/oauth-protected-resource/v1/orders"; path != want {
		t.Errorf("got the path %s, want %s", path, want)
	}
	proofs := got["dpop_signing_alg_values_supported"].([]any)
	if !slices.Contains(proofs, any("ES256")) ||
		slices.ContainsFunc(proofs, func(a any) bool { return strings.HasPrefix(a.(string), "HS") || a == "none" }) {
		t.Errorf("got the algorithms %v", proofs)
	}
	delete(got, "dpop_signing_alg_values_supported")
	want := `{"authorization_servers":["https://id.example"],"bearer_methods_supported":["header"],` +
		`"resource":"https://api.example/v1/orders/","scopes_supported":["orders:read","orders:write"]}`
	if text := string(must(json.Marshal(got))); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	const pointer = `resource_metadata="https://api.example/.well-known/oauth-protected-resource/v1/orders"`
	for _, resp := range []*http.Response{send(v.Handler(whoami), ""),
		send(v.Handler(whoami), "", "Bearer x"), send(v.Handler(bearer.Require("x")(whoami)), "",
			"Bearer "+ecKey().token())} {
		for _, challenge := range resp.Header.Values("WWW-Authenticate") {
			if !strings.Contains(challenge, pointer) {
				t.Errorf("%d: got the challenge %s, want one with %s", resp.StatusCode, challenge, pointer)
			}
		}
	}

	bound, err := bearer.NewMultiVerifier(newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) {
		c.Resource, c.RequireBound = "https://api.example", true
	}), another(t, otherURL, ecKey().jwk()))
	if err != nil {
		t.Fatal(err)
	}
	if path, got = get(bound); path != "/.well-known/oauth-protected-resource" ||
		got["dpop_bound_access_tokens_required"] != true || len(got["authorization_servers"].([]any)) != 2 {
		t.Errorf("got %s with %v", path, got)
	}
	certified := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) {
		c.Resource, c.RequireBound, c.ClientCertificate = "https://api.example", true, bearer.PeerCertificate
	})
	if _, got = get(certified); got["tls_client_certificate_bound_access_tokens"] != true ||
		got["dpop_bound_access_tokens_required"] != nil {
		t.Errorf("got %v", got)
	}
	defer func() {
		if recover() == nil {
			t.Error("Metadata without a resource does not panic")
		}
	}()
	newIssuer().verifier(t).Metadata()
}

func TestExplainAgreesWithVerify(t *testing.T) {
	v := newIssuer(ecKey().jwk(), rsaKey().jwk()).verifier(t)
	for _, test := range []struct {
		name string
		raw  string
		want string // the checks that fail
	}{
		{"a good token", ecKey().token(), ""},
		{"an expired token for another API",
			ecKey().token(object{"exp": time.Now().Add(-3 * time.Minute).Unix(), "aud": "web"}), "aud exp"},
		{"an ID token", ecKey().tokenWithHeader(object{"typ": "JWT"},
			object{"aud": "spa", "client_id": nil, "jti": nil, "nonce": "n"}), "typ aud client_id jti"},
		{"forged", otherEC().token(), "signature"},
		{"alg none", ecKey().tokenWithHeader(object{"alg": "none"}), "alg signature"},
		{"another alg", ecKey().tokenWithHeader(object{"alg": "ES384"}), "alg signature"},
		{"another issuer", ecKey().token(object{"iss": "https://other.example"}), "iss"},
		{"bound", ecKey().token(object{"cnf": object{"jkt": "x"}}), "cnf"},
		{"a claim twice", ecKey().sign(headerOf(ecKey()), []byte(`{"sub":"a","sub":"b"}`)), "claims"},
		{"no claims", ecKey().sign(headerOf(ecKey()), []byte(`{}`)), "iss aud exp iat sub client_id jti"},
		{"no JWT", "abc", "form"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var failed []string
			for _, c := range v.Explain(t.Context(), test.raw) {
				if c.Name == "" || c.Rule == "" {
					t.Errorf("check without name or rule: %+v", c)
				}
				if c.Err != nil {
					failed = append(failed, c.Name)
				}
			}
			if got := strings.Join(failed, " "); got != test.want {
				t.Errorf("what fails is %q, want %q", got, test.want)
			}
			if _, err := v.Verify(t.Context(), test.raw); (err == nil) != (len(failed) == 0) {
				t.Errorf("Verify returned %v", err)
			}
		})
	}
	var scopes []string
	for _, c := range v.Explain(t.Context(), ecKey().token(object{"scope": "orders:read"}),
		"orders:read", "orders", "orders:write") {
		if c.Name == "scope" {
			scopes = append(scopes, fmt.Sprint(c.Err))
		} else if c.Err != nil {
			t.Errorf("%s: %v", c.Name, c.Err)
		}
	}
	want := `<nil>
the token does not allow orders: it has ["orders:read"]
the token does not allow orders:write: it has ["orders:read"]`
	if got := strings.Join(scopes, "\n"); got != want {
		t.Errorf("of the scopes it says\n%s\nwant\n%s", got, want)
	}
	for _, c := range v.Explain(t.Context(), ecKey().token(object{"aud": []string{"web"}})) {
		if c.Name == "aud" &&
			(c.Err == nil || !strings.Contains(c.Err.Error(), `aud is ["web"], this API is "orders"`)) {
			t.Errorf("got %v", c.Err)
		}
	}
}

// A check that Verify does not make would say what is not true: a token of the
// right type may have a nonce.
func TestExplainLeavesOutWhatIsNotChecked(t *testing.T) {
	typed := newIssuer(ecKey().jwk()).verifier(t)
	untyped := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) { c.InsecureAllowAnyType = true })
	names := func(v *bearer.Verifier, raw string) (all string) {
		for _, c := range v.Explain(t.Context(), raw) {
			all += c.Name + " "
		}
		return all
	}
	for _, test := range []struct {
		name      string
		got, want string
	}{
		{"typed, with a nonce", names(typed, ecKey().token(object{"nonce": "n"})),
			"typ alg signature iss aud exp nbf iat sub client_id jti cnf "},
		{"of any type", names(untyped, ecKey().token()),
			"typ alg signature iss kind aud exp nbf iat sub client_id jti cnf "},
		{"of any type, without iat and jti", names(untyped, ecKey().token(object{"iat": nil, "jti": nil})),
			"typ alg signature iss kind aud exp nbf sub client_id cnf "},
	} {
		if got := strings.TrimPrefix(test.got, "form "); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestCachedTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := newIssuer(ecKey().jwk())
		v := iss.verifier(t)
		raw := ecKey().token(object{"exp": time.Now().Add(25 * time.Minute).Unix()})
		first := wantGood(t, v, raw, "at first")
		if again := wantGood(t, v, raw, "at once"); again != first {
			t.Error("the token was not cached")
		}
		iss.publish(rsaKey().jwk()) // the key is withdrawn
		time.Sleep(10*time.Minute - time.Second)
		wantGood(t, v, raw, "while the keys are current")
		time.Sleep(2 * time.Second)
		wantInvalid(t, v, raw, badSignature)
		iss.publish(ecKey().jwk())
		time.Sleep(10 * time.Minute)
		wantGood(t, v, raw, "when the key is back")
		time.Sleep(5*time.Minute + 28*time.Second)
		wantGood(t, v, raw, "within the leeway")
		time.Sleep(3 * time.Second)
		wantInvalid(t, v, raw, expired)
	})
}

func TestCacheIsBounded(t *testing.T) {
	v := newIssuer(ed25519Key().jwk()).verifier(t)
	for n := range 4200 {
		wantGood(t, v, ed25519Key().token(object{"x": n}), "one of many")
		wantInvalid(t, v, ed25519Key().token(object{"aud": "x"}), otherAudience)
	}
	if n := v.CachedTokens(); n != 4096 {
		t.Errorf("%d tokens are cached, want 4096 and no rejected one", n)
	}
}

func TestRFC8414Metadata(t *testing.T) {
	const url = "https://as.example/tenant"
	var requests []string
	transport := roundTrip(func(r *http.Request) *http.Response {
		requests = append(requests, r.URL.Path)
		w := httptest.NewRecorder()
		switch r.URL.Path {
		case "/.well-known/oauth-authorization-server/tenant":
			json.NewEncoder(w).Encode(object{"issuer": url, "jwks_uri": url + "/keys"})
		case "/tenant/keys":
			json.NewEncoder(w).Encode(object{"keys": []object{ecKey().jwk()}})
		default:
			w.WriteHeader(404)
		}
		return w.Result()
	})
	v := must(bearer.NewVerifier(bearer.Config{Issuer: url, Audience: audience,
		HTTPClient: &http.Client{Transport: transport}, Logger: new(logs).logger()}))
	wantGood(t, v, ecKey().token(object{"iss": url}), "of a server that does OAuth alone")
	if want := []string{"/tenant/.well-known/openid-configuration",
		"/.well-known/oauth-authorization-server/tenant", "/tenant/keys"}; !slices.Equal(requests, want) {
		t.Errorf("got requests for %q, want %q", requests, want)
	}
}
