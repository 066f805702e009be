package devidp_test

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// carol is a user whom no picker shows.
var carol = devidp.User{
	Sub: "carol", Name: "Carol", ACR: "gold", Claims: map[string]any{"roles": []any{"admin"}, "department": "sales"},
}

// claimsOf returns the claims of a JWT, which it does not verify.
func claimsOf(t *testing.T, token string) map[string]any {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func TestFurtherClaimsAreInAllTokens(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) { c.Users = []devidp.User{carol} })
	token := o.signIn("carol")
	for name, text := range map[string]string{
		"ID token": token.Extra("id_token").(string), "access token": token.AccessToken,
	} {
		claims := claimsOf(t, text)
		if got := claims["department"]; got != "sales" {
			t.Errorf("%s: department: got %v, want sales", name, got)
		}
		if got, _ := json.Marshal(claims["roles"]); string(got) != `["admin"]` {
			t.Errorf("%s: roles: got %s, want [admin]", name, got)
		}
		if got := claims["acr"]; got != "gold" {
			t.Errorf("%s: acr: got %v, want gold", name, got)
		}
	}
}

// A user with an acr does not get a stronger one by a request.
func TestACROfUserIsFixed(t *testing.T) {
	weak := devidp.User{Sub: "weak", ACR: "1"}
	o := newOP(t, func(c *devidp.Config) {
		c.ACRValues, c.Users = []string{"1", "2"}, append(devidp.DefaultUsers(), weak)
	})
	for user, want := range map[string]string{"weak": "1", "alice": "2"} {
		token := o.signIn(user, param("acr_values", "2"), param("prompt", "login"))
		if got := claimsOf(t, token.Extra("id_token").(string))["acr"]; got != want {
			t.Errorf("%s: acr: got %v, want %s", user, got, want)
		}
	}
}

func TestSignInOnceNeedsNoPicker(t *testing.T) {
	o := newOP(t, nil)
	o.signIn("alice")
	hint, err := o.SignInOnce(carol)
	if err != nil {
		t.Fatal(err)
	}
	target := o.authURL(param("login_hint", hint), param("prompt", "login"))
	if resp, page := o.visit(target, nil); resp.StatusCode != 303 {
		t.Fatalf("first request: got %d, want 303:\n%s", resp.StatusCode, page)
	}
	if resp, page := o.visit(target, nil); resp.StatusCode != 200 || !strings.Contains(page, `name="user"`) {
		t.Errorf("second request: got %d, want the picker", resp.StatusCode)
	}
	if got := claimsOf(t, o.signIn("").Extra("id_token").(string))["sub"]; got != "carol" {
		t.Errorf("the session belongs to %v, want carol", got)
	}
	if _, err := o.SignInOnce(devidp.User{Sub: "x", Claims: map[string]any{"iss": "y"}}); err == nil {
		t.Error("a user with the claim iss was accepted")
	}
}

func TestPickerAcceptsClaims(t *testing.T) {
	o := newOP(t, nil)
	target := o.authURL(param("prompt", "login"))
	_, page := o.visit(target, nil)
	post := func(claims string) (int, string) {
		resp, page := o.visit(target, url.Values{"csrf": {csrfOf(t, page)}, "claims": {claims}})
		return resp.StatusCode, page
	}
	for _, claims := range []string{
		"", "[]", "null", `{"name": "x"}`, `{"sub": 1}`, `{"sub": "x", "exp": 1}`, `{"sub": "x", "acr": "none"}`,
		`{"sub": "x"} {}`, `{"sub": "` + strings.Repeat("x", 300) + `"}`,
	} {
		if status, _ := post(claims); status != 400 {
			t.Errorf("claims %.30s: got %d, want 400", claims, status)
		}
	}
	if status, page := post(`{"sub": "dave", "age": 42}`); status != 303 {
		t.Fatalf("claims with sub: got %d, want 303:\n%s", status, page)
	}
	claims := claimsOf(t, o.signIn("").Extra("id_token").(string))
	if claims["sub"] != "dave" {
		t.Errorf("sub: got %v, want dave", claims["sub"])
	}
	if claims["age"] != 42. {
		t.Errorf("age: got %v, want 42", claims["age"])
	}
}

func TestPickerRemembersTheLastChoice(t *testing.T) {
	o := newOP(t, nil)
	o.signIn("bob")
	_, page := o.visit(o.authURL(param("prompt", "login")), nil)
	if !strings.Contains(page, `value="bob" autofocus`) {
		t.Errorf("bob does not have the focus:\n%s", page)
	}
	if got := strings.Count(page, "last time"); got != 1 {
		t.Errorf("users picked last: got %d, want 1", got)
	}
	_, page = o.visit(o.authURL(param("prompt", "login"), param("login_hint", "alice")), nil)
	if !strings.Contains(page, `value="alice" autofocus`) {
		t.Error("a login_hint does not take precedence")
	}
}

func writeUsers(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "users.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestUserFile(t *testing.T) {
	read, err := devidp.ReadUserFile(writeUsers(t, `
acr_values: [low, high]
users:
  - sub: alice
    name: Alice
    email: alice@example.com
    roles: [admin, editor]
    acr: high
    claims:
      department: sales
      address: {country: DE}
      age: 42
  - sub: "7"
`))
	if err != nil {
		t.Fatal(err)
	}
	o := newOP(t, func(c *devidp.Config) { c.Users, c.ACRValues = read.Users, read.ACRValues })
	claims := claimsOf(t, o.signIn("alice").AccessToken)
	for name, want := range map[string]string{
		"name": `"Alice"`, "roles": `["admin","editor"]`, "acr": `"high"`, "department": `"sales"`,
		"address": `{"country":"DE"}`, "age": `42`,
	} {
		if got, _ := json.Marshal(claims[name]); string(got) != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	if got := claimsOf(t, o.signIn("7", param("prompt", "login")).AccessToken)["sub"]; got != "7" {
		t.Errorf("sub: got %v, want 7", got)
	}
}

func TestMistakesInUserFileNameTheLine(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"empty":            {"", ":1: there are no users"},
		"no users":         {"acr_values: [a]\n", ":1: there are no users"},
		"unknown key":      {"users:\n  - sub: a\n    rols: [x]\n", `:3: unknown key "rols"`},
		"unknown top key":  {"user:\n  - sub: a\n", `:1: unknown key "user"`},
		"no sub":           {"users:\n  - name: a\n", ":2: sub is missing"},
		"same sub":         {"users:\n  - sub: a\n  - sub: a\n", `:3: "a" is the sub of another user`},
		"unknown acr":      {"users:\n  - {sub: a, acr: x}\n", `:2: a: acr "x" is not one of acr_values: silver, gold`},
		"claim of its own": {"users:\n  - sub: a\n    claims: {exp: 1}\n", ":2: a: the claim exp is set"},
		"roles no list":    {"users:\n  - sub: a\n    roles: admin\n", ":3: roles is not a list"},
		"claims no map":    {"users:\n  - sub: a\n    claims: [x]\n", ":3: claims is not a mapping"},
		"twice":            {"users:\n  - sub: a\n    sub: b\n", ":3:"},
		"no YAML":          {"users: [\n", "users.yaml"},
		"a list":           {"- sub: a\n", ":1: the file is not a mapping"},
	} {
		_, err := devidp.ReadUserFile(writeUsers(t, test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
	_, err := devidp.ReadUserFile(writeUsers(t, "users:\n  - name: a\n  - {sub: b, x: y}\n"))
	if err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two mistakes: got %v, want two lines", err)
	}
	if _, err := devidp.ReadUserFile(writeUsers(t, strings.Repeat("#", 2<<20))); err == nil {
		t.Error("a file of 2 MiB was read")
	}
}
