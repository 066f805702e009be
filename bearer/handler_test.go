package bearer_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

// whoami responds with the subject of the token.
var whoami = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	token, ok := bearer.FromContext(r.Context())
	if !ok {
		http.Error(w, "no token in the context", http.StatusInternalServerError)
		return
	}
	w.Write([]byte(token.Subject))
})

func TestHandlerRFC6750(t *testing.T) {
	const (
		bare         = `Bearer realm="orders"`
		request      = `Bearer realm="orders", error="invalid_request", error_description="`
		twice        = request + `there is more than one Authorization header or token"`
		malformed    = request + `the Authorization header is not a scheme, a space and one token"`
		invalidToken = `Bearer realm="orders", error="invalid_token", error_description="`
	)
	good := ecKey().token()
	for _, test := range []struct {
		name          string
		target        string
		authorization []string
		status        int
		challenge     string
	}{
		{"a good token", "", []string{"Bearer " + good}, 200, ""},
		{"the scheme in lower case", "", []string{"bearer " + good}, 200, ""},
		{"the scheme in upper case", "", []string{"BEARER " + good}, 200, ""},
		{"two spaces", "", []string{"Bearer  " + good}, 200, ""},
		{"another query", "/?token=x", []string{"Bearer " + good}, 200, ""},

		{"no credentials", "", nil, 401, bare},
		{"an empty header", "", []string{""}, 401, bare},
		{"another scheme", "", []string{"Basic YWxpY2U6YWxpY2U="}, 401, bare},
		{"DPoP", "", []string{"DPoP " + good}, 401, bare},
		{"a token without a scheme", "", []string{good}, 401, bare},
		{"a scheme that begins like Bearer", "", []string{"Bearerx " + good}, 401, bare},
		{"a token in the query", "/?access_token=" + good, nil, 401, bare},

		{"an expired token", "", []string{"Bearer " + ecKey().token(object{"exp": 1})}, 401,
			invalidToken + expired + `"`},
		{"a token for another audience", "",
			[]string{"Bearer " + ecKey().token(object{"aud": "x"})}, 401, invalidToken + otherAudience + `"`},
		{"what is no JWT", "", []string{"Bearer abc"}, 401, invalidToken + notCompact + `"`},
		{"a token with padding", "", []string{"Bearer " + good + "="}, 401, invalidToken + notCompact + `"`},
		{"a forged token", "", []string{"Bearer " + otherEC().token()}, 401, invalidToken + badSignature + `"`},

		{"two headers", "", []string{"Bearer " + good, "Bearer " + good}, 400, twice},
		{"two headers, one of another scheme", "", []string{"Basic eA==", "Bearer " + good}, 400, twice},
		{"a token in the query beside the header", "/?access_token=x", []string{"Bearer " + good}, 400, twice},
		{"a token in the query, spelled otherwise", "/?access%5Ftoken=x", []string{"Bearer " + good}, 400, twice},
		{"no token behind the scheme", "", []string{"Bearer"}, 400, malformed},
		{"a space behind the scheme", "", []string{"Bearer "}, 400, malformed},
		{"something behind the token", "", []string{"Bearer " + good + " x"}, 400, malformed},
		{"a space behind the token", "", []string{"Bearer " + good + " "}, 400, malformed},
		{"a second credential behind a comma", "", []string{"Bearer " + good + ", Basic eA=="}, 400, malformed},
		{"quotes", "", []string{`Bearer "` + good + `"`}, 400, malformed},
		{"JSON", "", []string{`Bearer {"payload":"x"}`}, 400, malformed},
		{"padding alone", "", []string{"Bearer =="}, 400, malformed},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) { c.Realm = "orders" })
			resp := send(v.Handler(whoami), test.target, test.authorization...)
			if resp.StatusCode != test.status {
				t.Errorf("got status %d, want %d", resp.StatusCode, test.status)
			}
			if got := strings.Join(resp.Header.Values("WWW-Authenticate"), "\n"); got != test.challenge {
				t.Errorf("got challenge\n%s\nwant\n%s", got, test.challenge)
			}
			if test.status != 200 {
				wantProblem(t, resp, test.status)
			}
		})
	}
}

// wantProblem checks the body of a rejection.
func wantProblem(t *testing.T, resp *http.Response, status int) {
	t.Helper()
	var problem struct {
		Title  string
		Status int
		Code   string
	}
	if err := json.NewDecoder(resp.Body).Decode(&problem); err != nil || problem.Status != status ||
		problem.Title == "" {
		t.Errorf("got the problem %+v, %v, want one with a title and the status %d", problem, err, status)
	}
	if got := resp.Header.Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("got content type %q, want application/problem+json", got)
	}
	if got := resp.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("got Cache-Control %q, want no-store", got)
	}
	if challenge := resp.Header.Get("WWW-Authenticate"); problem.Code != "" &&
		!strings.Contains(challenge, `error="`+problem.Code+`"`) {
		t.Errorf("got the code %q and the challenge %q", problem.Code, challenge)
	}
}

func TestChallengeWithoutRealm(t *testing.T) {
	resp := send(newIssuer().verifier(t).Handler(whoami), "")
	if got := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != 401 || got != "Bearer" {
		t.Errorf("got %d and the challenge %q, want 401 and Bearer", resp.StatusCode, got)
	}
}

func TestHandlerDoesNotReadBody(t *testing.T) {
	v := newIssuer(ecKey().jwk()).verifier(t)
	post := func(h http.Handler, authorization string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/", strings.NewReader("access_token="+ecKey().token()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	if w := post(v.Handler(whoami), ""); w.Code != 401 {
		t.Errorf("got %d for a token in a form, want 401", w.Code)
	}
	form := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("access_token") == "" {
			t.Error("the body was read")
		}
	})
	post(v.Handler(form), "Bearer "+ecKey().token())
}

func TestRequire(t *testing.T) {
	for _, test := range []struct {
		name     string
		scope    any
		required []string
		status   int
	}{
		{"the one", "orders:read", []string{"orders:read"}, 200},
		{"among others", "openid orders:read x", []string{"orders:read"}, 200},
		{"both", "b x a", []string{"a", "b"}, 200},
		{"one of two", "a", []string{"a", "b"}, 403},
		{"the other of two", "b", []string{"a", "b"}, 403},
		{"another", "orders:write", []string{"orders:read"}, 403},
		{"one that begins with it", "readwrite", []string{"read"}, 403},
		{"one that ends with it", "xread", []string{"read"}, 403},
		{"in another case", "Read", []string{"read"}, 403},
		{"behind a tab", "x\tread", []string{"read"}, 403},
		{"none", nil, []string{"read"}, 403},
		{"an empty one", "", []string{"read"}, 403},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) { c.Realm = "api" })
			h := v.Handler(bearer.Require(test.required...)(whoami))
			resp := send(h, "", "Bearer "+ecKey().token(object{"scope": test.scope}))
			if resp.StatusCode != test.status {
				t.Errorf("got %d, want %d", resp.StatusCode, test.status)
			}
			if test.status == 403 {
				scope := strings.Join(test.required, " ")
				want := `Bearer realm="api", error="insufficient_scope", ` +
					`error_description="the token lacks a required scope: ` + scope + `", scope="` + scope + `"`
				if got := resp.Header.Get("WWW-Authenticate"); got != want {
					t.Errorf("got challenge\n%s\nwant\n%s", got, want)
				}
				wantProblem(t, resp, 403)
			}
		})
	}
}

func TestRequireOutsideHandler(t *testing.T) {
	h := bearer.Require("read")(whoami)
	if resp := send(h, "", "Bearer "+ecKey().token()); resp.StatusCode != 401 ||
		resp.Header.Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("got %d, %q, want 401 and a bare challenge", resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
	}
	if token, ok := bearer.FromContext(t.Context()); ok || token != nil {
		t.Errorf("got %v, %v from a context without a token", token, ok)
	}
}

func TestRequirePanicsWithInvalidScope(t *testing.T) {
	for _, scopes := range [][]string{nil, {""}, {"a b"}, {"a", `"`}, {"a\\"}, {"ä"}, {"a\n"}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Require(%q) does not panic", scopes)
				}
			}()
			bearer.Require(scopes...)
		}()
	}
}

func TestHandlerWithoutKeys(t *testing.T) {
	iss := newIssuer(ecKey().jwk())
	iss.misbehave(isDown)
	resp := send(iss.verifier(t).Handler(whoami), "", "Bearer "+ecKey().token())
	if got := resp.Header.Get("Retry-After"); got != "5" {
		t.Errorf("got Retry-After %q, want 5", got)
	}
	if got := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != 503 || got != "" {
		t.Errorf("got %d and the challenge %q, want 503 and none", resp.StatusCode, got)
	}
	wantProblem(t, resp, 503)
}

func TestLogHasReasonAndNoToken(t *testing.T) {
	var log logs
	iss := newIssuer(ecKey().jwk())
	v := iss.verifier(t, func(c *bearer.Config) { c.Logger = log.logger() })
	raws := []string{
		ecKey().token(object{"aud": "invoices"}),
		ecKey().tokenWithHeader(object{"kid": "unknown"}),
		ecKey().token() + "=",
		otherEC().token(),
	}
	for _, raw := range raws {
		send(v.Handler(whoami), "/orders?access_token="+raw)
		send(v.Handler(whoami), "/orders", "Bearer "+raw)
		send(v.Handler(whoami), "/orders", "Bearer "+raw+" "+raw)
	}
	text := log.String()
	for _, want := range []string{`this API is \"orders\"`, "invoices", "unknown", "path=/orders"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %s:\n%s", want, text)
		}
	}
	for _, raw := range raws {
		for part := range strings.SplitSeq(raw, ".") {
			if strings.Contains(text, part) {
				t.Errorf("the log contains a part of a token: %s", part)
			}
		}
	}
}

func TestVerifyOverTLS(t *testing.T) {
	var server *httptest.Server
	var issuer string // ends in a slash, which the path of the metadata does not double
	server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/realms/main/.well-known/openid-configuration":
			json.NewEncoder(w).Encode(object{"issuer": issuer, "jwks_uri": server.URL + "/keys"})
		case "/keys":
			json.NewEncoder(w).Encode(object{"keys": []object{ecKey().jwk()}})
		default:
			t.Errorf("unexpected request for %s", r.URL.Path)
		}
	}))
	defer server.Close()
	issuer = server.URL + "/realms/main/"
	v, err := bearer.NewVerifier(bearer.Config{Issuer: issuer, Audience: audience,
		HTTPClient: server.Client(), Logger: new(logs).logger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := v.Verify(ctx, ecKey().token(object{"iss": issuer})); err != nil {
		t.Error(err)
	}
	if _, err := v.Verify(ctx, ecKey().token(object{"iss": strings.TrimSuffix(issuer, "/")})); err == nil {
		t.Error("the issuer without its slash was accepted")
	}
}
