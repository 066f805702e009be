package main

import (
	"bytes"
	"encoding/base64"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

// verified runs verify for the API api, which orders:read is needed for.
func verified(t *testing.T, issuer, stdin string, more ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	args := append([]string{"verify", "--issuer", issuer, "--audience", "api", "--scope", "orders:read"}, more...)
	err := run(t.Context(), args, nil, strings.NewReader(stdin), &out, &errs)
	return exitCode(err), out.String(), errs.String()
}

func TestVerifySaysWhatIsWrongWithAToken(t *testing.T) {
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
	for name, test := range map[string]struct {
		stdin  string
		status int
		want   []string // of what is printed; * is whatever it is
	}{
		"a good one":                {good + "\n", 0, []string{"\n  typ  *\"at+jwt\"\n", "\n  sub  *\"alice\"\n", "  exp  *" + now.Add(time.Minute).UTC().Format("2006-01-02 15:04:05 UTC"), "\nAn API would take this token."}},
		"from a header":             {"Bearer " + good, 0, []string{"✓ signature"}},
		"in white space":            {"\n\t " + good + " \r\n", 0, []string{"✓ signature"}},
		"expired":                   {claim("exp", now.Add(-3*time.Minute).Unix()), 1, []string{"✗ exp  *the token has expired: it expired 3 minutes ago, 20", "✓ aud"}},
		"for another API":           {claim("aud", []string{"web"}), 1, []string{`✗ aud  *the token is for another audience: aud is ["web"], this API is "api"`}},
		"of another issuer":         {claim("iss", "https://id.example"), 1, []string{`✗ iss  *iss is "https://id.example", want "http://`}},
		"from the future":           {claim("nbf", now.Add(2*time.Hour+time.Minute).Unix()), 1, []string{"✗ nbf  *nbf is in 2 hours, 20"}},
		"without the scope":         {claim("scope", "orders:readwrite openid"), 1, []string{`✗ scope  *the token does not allow orders:read: it has ["orders:readwrite", "openid"]`}},
		"without any":               {claim("scope", ""), 1, []string{`✗ scope  *it has []`}},
		"an ID token":               {sign(map[string]any{"typ": "JWT"}, map[string]any{"aud": "spa", "nonce": "n"}), 1, []string{"✗ typ  *JWT", "✗ aud"}},
		"unsigned":                  {unsigned, 1, []string{"✗ alg", "✗ signature"}},
		"tampered with":             {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"root"}`)) + "." + parts[2], 1, []string{"✗ signature", `sub  *"root"`, "✗ iss"}},
		"bound to a key":            {claim("cnf", map[string]any{"jkt": "x"}), 1, []string{"✗ cnf  *bound"}},
		"with a claim twice":        {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"a","sub":"b"}`)) + "." + parts[2], 1, []string{`sub  *"a"`, `sub  *"b"`, "✗ claims"}},
		"with what terminals obey":  {claim("name", "\x1b[2J\u202egnp\u0007\u009b31m\x00é☕"), 0, []string{`name  *"\\u001b[2J\\u202egnp\\u0007\\u009b31m\\u0000é☕"`}},
		"with such a name":          {claim("a\x1b]0;x\x07\u2028", 1), 0, []string{`a\\u001b]0;x\\u0007\\u2028`}},
		"whose claims are no JSON":  {parts[0] + ".bm8gSlNPTg." + parts[2], 1, []string{"Claims\n  cannot be read", "✗ claims"}},
		"whose claims are an array": {parts[0] + ".WzFd." + parts[2], 1, []string{"Claims\n  cannot be read: it is not a JSON object"}},
		"not in base64":             {"a+b.c/d.e", 1, []string{"Header\n  cannot be read: it is not base64url", "✗ form"}},
		"opaque":                    {"2YotnFZFEjr1zCsicMWpAA", 1, []string{"This is no JWT. If it is an opaque token", "✗ form"}},
		"encrypted":                 {strings.Repeat(parts[0]+".", 4) + parts[2], 1, []string{"This is an encrypted token", "✗ form"}},
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
					t.Errorf("%s is not in\n%s", want, stdout)
				}
			}
			if refused := strings.TrimSpace(stderr) == "an API would refuse this token"; refused != (status == 1) {
				t.Errorf("on standard error: %s", stderr)
			}
			if raw := strings.TrimSpace(strings.TrimPrefix(test.stdin, "Bearer ")); strings.Contains(stdout+stderr, raw) || strings.Contains(stdout+stderr, parts[2]) {
				t.Error("the token is printed")
			}
			if strings.ContainsFunc(stdout+stderr, func(c rune) bool { return c < ' ' && c != '\n' || c >= 0x7f && c < 0xa0 || c == 0x202e || c == 0x2028 }) {
				t.Errorf("what is printed is not text: %q", stdout)
			}
		})
	}
}

func TestVerifyNeedsOneToken(t *testing.T) {
	for stdin, want := range map[string]string{
		"":                         "standard input is empty",
		" \n":                      "standard input is empty",
		"one two":                  "standard input holds 2 words",
		"Bearer one two":           "standard input holds 3 words",
		strings.Repeat("x", 1<<20): "standard input holds more than 64 KiB",
	} {
		if status, stdout, stderr := verified(t, "http://127.0.0.1:1", stdin); status != 1 || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%.20q: got status %d, %s%s", stdin, status, stdout, stderr)
		}
	}
	for _, args := range [][]string{{"--issuer", ""}, {"--audience", ""}, {"--issuer", "http://id.example"}, {"--algorithm", "HS256"}, {"--ca-file", "/nowhere"}, {"token"}, {"--secret", "x"}} {
		if status, stdout, stderr := verified(t, "http://127.0.0.1:1", "x", args...); status != 2 || stdout != "" || !strings.Contains(stderr, strings.TrimLeft(args[0], "-")) {
			t.Errorf("%v: got status %d, %s%s", args, status, stdout, stderr)
		}
	}
}

func TestVerifyWithoutTheIssuerSaysThatItCannotTell(t *testing.T) {
	p := brokertest.NewProvider(t, "http://localhost")
	p.Misbehave(t, brokertest.ProviderDown)
	now := time.Now().Unix()
	token, err := p.Sign(map[string]any{"typ": "at+jwt"}, map[string]any{"iss": p.Issuer, "aud": "api", "sub": "a", "client_id": "c", "jti": "1", "iat": now, "exp": now + 60, "scope": "orders:read"})
	if err != nil {
		t.Fatal(err)
	}
	status, stdout, stderr := verified(t, p.Issuer, token)
	if status != 1 || !strings.Contains(stdout, "? signature") || !strings.Contains(stdout, "✓ aud") || strings.Contains(stdout, "✗") || !strings.Contains(stderr, "cannot be told without the issuer's keys") {
		t.Errorf("got status %d\n%s%s", status, stdout, stderr)
	}
}

func TestATokenOfTheDemo(t *testing.T) {
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
	if status != 0 || issuer == nil || !strings.Contains(hint, app+"/api/orders") {
		t.Fatalf("got status %d, %s%s", status, token, hint)
	}
	if status, out, errs := verified(t, issuer[1], token); status != 0 || !strings.Contains(out, `"bob"`) {
		t.Errorf("verify: got status %d\n%s%s", status, out, errs)
	}
	if got := orders(token); got != 200 {
		t.Errorf("the API, through the broker: got %d", got)
	}
	_, token, _ = demoToken("--scope", "openid")
	if got := orders(token); got != 403 {
		t.Errorf("without the scope: got %d", got)
	}
	if got := orders("x"); got != 401 {
		t.Errorf("junk: got %d", got)
	}

	if status, out, errs := demoToken("--user", "eve"); status != 1 || out != "" || !strings.Contains(errs, `no token for "eve": there is no user of that name`) {
		t.Errorf("somebody unknown: got status %d, %s%s", status, out, errs)
	}
	listen = "nonsense"
	if status, _, errs := demoToken(); status != 2 || !strings.Contains(errs, "--listen") {
		t.Errorf("no address: got status %d, %s", status, errs)
	}
	for name, h := range map[string]http.HandlerFunc{
		"no demo": http.NotFound,
		"a broker in production": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://id.example/authorize?client_id=x", http.StatusFound)
		},
	} {
		other := httptest.NewServer(h)
		listen = other.Listener.Addr().String()
		if status, out, errs := demoToken(); status != 1 || out != "" || !strings.Contains(errs, "no demo answers at http://localhost:") {
			t.Errorf("%s: got status %d, %s%s", name, status, out, errs)
		}
		other.Close()
	}
	if status, _, errs := demoToken(); status != 1 || !strings.Contains(errs, "start one with: cloakroom demo") {
		t.Errorf("nothing there: got status %d, %s", status, errs)
	}
}
