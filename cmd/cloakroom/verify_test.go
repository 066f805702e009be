package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

// verified runs the command verify for the API "api", which requires the scope
// orders:read.
func verified(t *testing.T, issuer, stdin string, more ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	args := append([]string{"verify", "--issuer", issuer, "--audience", "api", "--scope", "orders:read"}, more...)
	err := run(t.Context(), args, nil, strings.NewReader(stdin), &out, &errs)
	return exitCode(err), out.String(), errs.String()
}

func TestVerifyReportsWhatIsWrongWithAToken(t *testing.T) {
	p := brokertest.NewProvider(t, "http://localhost")
	now := time.Now()
	sign := func(header, claims map[string]any) string {
		h := map[string]any{"typ": "at+jwt"}
		maps.Copy(h, header)
		c := map[string]any{
			"iss": p.Issuer, "aud": "api", "sub": "alice", "client_id": "spa", "jti": "1", "scope": "orders:read",
			"iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
		}
		maps.Copy(c, claims)
		token, err := p.Sign(h, c)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	claim := func(name string, value any) string { return sign(nil, map[string]any{name: value}) }
	good := sign(nil, nil)
	parts := strings.Split(good, ".")
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"at+jwt"}`)) + "." + parts[1] + "."
	withClaims := func(json string) string {
		return parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(json)) + "." + parts[2]
	}
	for name, test := range map[string]struct {
		stdin  string
		status int
		want   []string // in the output; * matches any text of a line
	}{
		"valid": {good + "\n", 0, []string{
			"\n  typ  *\"at+jwt\"\n", "\n  sub  *\"alice\"\n",
			"  exp  *" + now.Add(time.Minute).UTC().Format("2006-01-02 15:04:05 UTC"),
			"\nAn API would accept this token.",
		}},
		"from a header":  {"Bearer " + good, 0, []string{"✓ signature"}},
		"in white space": {"\n\t " + good + " \r\n", 0, []string{"✓ signature"}},
		"expired": {claim("exp", now.Add(-3*time.Minute).Unix()), 1, []string{
			"✗ exp  *the token has expired: it expired 3 minutes ago, 20", "✓ aud",
		}},
		"for another API": {claim("aud", []string{"web"}), 1, []string{
			`✗ aud  *the token is for another audience: aud is ["web"], this API is "api"`,
		}},
		"of another issuer": {claim("iss", "https://id.example"), 1, []string{
			`✗ iss  *iss is "https://id.example", want "http://`,
		}},
		"not valid yet": {claim("nbf", now.Add(2*time.Hour+time.Minute).Unix()), 1, []string{
			"✗ nbf  *nbf is in 2 hours, 20",
		}},
		"without the scope": {claim("scope", "orders:readwrite openid"), 1, []string{
			`✗ scope  *the token does not allow orders:read: it has ["orders:readwrite", "openid"]`,
		}},
		"without scopes": {claim("scope", ""), 1, []string{`✗ scope  *it has []`}},
		"an ID token": {sign(map[string]any{"typ": "JWT"}, map[string]any{"aud": "spa", "nonce": "n"}), 1, []string{
			"✗ typ  *JWT", "✗ aud",
		}},
		"unsigned":          {unsigned, 1, []string{"✗ alg", "✗ signature"}},
		"with other claims": {withClaims(`{"sub":"root"}`), 1, []string{"✗ signature", `sub  *"root"`, "✗ iss"}},
		"bound to a key":    {claim("cnf", map[string]any{"jkt": "x"}), 1, []string{"✗ cnf  *bound"}},
		"with a claim twice": {withClaims(`{"sub":"a","sub":"b"}`), 1,
			[]string{`sub  *"a"`, `sub  *"b"`, "✗ claims"}},
		"with escape sequences": {claim("name", "\x1b[2J\u202egnp\u0007\u009b31m\x00é☕"), 0, []string{
			`name  *"\\u001b[2J\\u202egnp\\u0007\\u009b31m\\u0000é☕"`,
		}},
		"with escape sequences in a name": {claim("a\x1b]0;x\x07\u2028", 1), 0, []string{
			`a\\u001b]0;x\\u0007\\u2028`,
		}},
		"with claims that are not JSON": {withClaims("no JSON"), 1, []string{"Claims\n  cannot be read", "✗ claims"}},
		"with an array of claims": {withClaims("[1]"), 1, []string{
			"Claims\n  cannot be read: it is not a JSON object",
		}},
		"not in base64": {"a+b.c/d.e", 1, []string{"Header\n  cannot be read: it is not base64url", "✗ form"}},
		"opaque": {"2YotnFZFEjr1zCsicMWpAA", 1, []string{
			"This is not a JWT. If it is an opaque token", "✗ form",
		}},
		"encrypted": {strings.Repeat(parts[0]+".", 4) + parts[2], 1, []string{
			"This is an encrypted token", "✗ form",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := verified(t, p.Issuer, test.stdin)
			if status != test.status {
				t.Errorf("got status %d, want %d", status, test.status)
			}
			for _, want := range test.want {
				expression := strings.ReplaceAll(regexp.QuoteMeta(want), `\*`, ".*")
				expression = strings.ReplaceAll(expression, `\\\\`, `\\`)
				if !regexp.MustCompile(expression).MatchString(stdout) {
					t.Errorf("got\n%s\nwant %s in it", stdout, want)
				}
			}
			if refused := strings.TrimSpace(stderr) == "an API would refuse this token"; refused != (status == 1) {
				t.Errorf("standard error with status %d: got %s", status, stderr)
			}
			token := strings.TrimSpace(strings.TrimPrefix(test.stdin, "Bearer "))
			for _, secret := range []string{token, parts[2]} {
				if strings.Contains(stdout+stderr, secret) {
					t.Errorf("the output contains %.20s…", secret)
				}
			}
			control := func(c rune) bool {
				return c < ' ' && c != '\n' || c >= 0x7f && c < 0xa0 || c == 0x202e || c == 0x2028
			}
			if strings.ContainsFunc(stdout+stderr, control) {
				t.Errorf("output: got %q, want no control characters", stdout+stderr)
			}
		})
	}
}

func TestVerifyNeedsOneToken(t *testing.T) {
	for stdin, want := range map[string]string{
		"":                         "standard input is empty",
		" \n":                      "standard input is empty",
		"one two":                  "standard input has 2 words",
		"Bearer one two":           "standard input has 3 words",
		strings.Repeat("x", 1<<20): "standard input has more than 64 KiB",
	} {
		status, stdout, stderr := verified(t, "http://127.0.0.1:1", stdin)
		wantError(t, fmt.Sprintf("%.20q", stdin), status, stdout, stderr, 1, want)
	}
	for _, args := range [][]string{
		{"--issuer", ""}, {"--audience", ""}, {"--issuer", "http://id.example"}, {"--algorithm", "HS256"},
		{"--ca-file", "/nowhere"}, {"token"}, {"--secret", "x"},
	} {
		status, stdout, stderr := verified(t, "http://127.0.0.1:1", "x", args...)
		wantError(t, fmt.Sprint(args), status, stdout, stderr, 2, strings.TrimLeft(args[0], "-"))
	}
}

// wantError checks the status and the message of a command that failed, and
// that it printed nothing else.
func wantError(t *testing.T, name string, status int, stdout, stderr string, wantStatus int, want string) {
	t.Helper()
	if status != wantStatus {
		t.Errorf("%s: got status %d, want %d", name, status, wantStatus)
	}
	if stdout != "" {
		t.Errorf("%s: got %q on standard output, want nothing", name, stdout)
	}
	if !strings.Contains(stderr, want) {
		t.Errorf("%s: got %q on standard error, want %q in it", name, stderr, want)
	}
}

func TestVerifyWithoutTheIssuersKeys(t *testing.T) {
	p := brokertest.NewProvider(t, "http://localhost")
	p.Misbehave(t, brokertest.ProviderDown)
	now := time.Now().Unix()
	token, err := p.Sign(map[string]any{"typ": "at+jwt"}, map[string]any{
		"iss": p.Issuer, "aud": "api", "sub": "a", "client_id": "c", "jti": "1",
		"iat": now, "exp": now + 60, "scope": "orders:read",
	})
	if err != nil {
		t.Fatal(err)
	}
	status, stdout, stderr := verified(t, p.Issuer, token)
	if status != 1 {
		t.Errorf("got status %d, want 1", status)
	}
	for _, want := range []string{"? signature", "✓ aud"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("standard output: got\n%s\nwant %q in it", stdout, want)
		}
	}
	if strings.Contains(stdout, "✗") {
		t.Errorf("standard output: got\n%s\nwant no ✗", stdout)
	}
	if want := "the result is unknown without the issuer's keys"; !strings.Contains(stderr, want) {
		t.Errorf("standard error: got\n%s\nwant %q in it", stderr, want)
	}
}

func TestDemoToken(t *testing.T) {
	p := start(t, nil, "demo", "--listen", "127.0.0.1:0")
	app := p.waitFor(p.stdout, `Open (http://localhost:\d+) and sign in`)
	listen := strings.Replace(app, "http://localhost", "127.0.0.1", 1)
	demoToken := func(args ...string) (status int, stdout, stderr string) {
		var out, errs bytes.Buffer
		err := run(t.Context(), append([]string{"demo", "token", "--listen", listen}, args...), nil, nil, &out, &errs)
		return exitCode(err), out.String(), errs.String()
	}
	orders := func(token string) int {
		req, err := http.NewRequestWithContext(t.Context(), "GET", app+"/api/orders", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(token))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}

	status, token, hint := demoToken("--user", "bob")
	issuer := regexp.MustCompile(`--issuer (\S+) --audience api`).FindStringSubmatch(hint)
	if status != 0 || issuer == nil {
		t.Fatalf("got status %d, %s%s, want 0 and the command verify", status, token, hint)
	}
	if want := app + "/api/orders"; !strings.Contains(hint, want) {
		t.Errorf("standard error: got %s, want %s in it", hint, want)
	}
	if status, out, errs := verified(t, issuer[1], token); status != 0 || !strings.Contains(out, `"bob"`) {
		t.Errorf("verify: got status %d, want 0 and bob\n%s%s", status, out, errs)
	}
	if got := orders(token); got != 200 {
		t.Errorf("call with the token: got %d, want 200", got)
	}
	_, token, _ = demoToken("--scope", "openid")
	if got := orders(token); got != 403 {
		t.Errorf("call without the scope: got %d, want 403", got)
	}
	if got := orders("x"); got != 401 {
		t.Errorf("call with an invalid token: got %d, want 401", got)
	}

	status, out, errs := demoToken("--user", "eve")
	wantError(t, "unknown user", status, out, errs, 1, `a token for "eve": there is no such user`)
	listen = "nonsense"
	status, out, errs = demoToken()
	wantError(t, "invalid address", status, out, errs, 2, "--listen")
	for name, h := range map[string]http.HandlerFunc{
		"no demo": http.NotFound,
		"a broker in production": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://id.example/authorize?client_id=x", http.StatusFound)
		},
	} {
		other := httptest.NewServer(h)
		listen = other.Listener.Addr().String()
		status, out, errs := demoToken()
		wantError(t, name, status, out, errs, 1, "no demo is running at http://localhost:")
		other.Close()
	}
	status, out, errs = demoToken()
	wantError(t, "nothing listens", status, out, errs, 1, "start one with: cloakroom demo")
}
