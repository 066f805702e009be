package devidp_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/oauth2"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

const (
	redirectURI = "http://localhost:8080/bff/callback"
	afterLogout = "http://localhost:8080/bff/logout/callback"
)

// op is a running provider and a client that knows it.
type op struct {
	*devidp.Provider
	t        *testing.T
	ctx      context.Context // with the client's HTTP client, for oauth2 and go-oidc
	issuer   string
	oauth    oauth2.Config
	verifier *oidc.IDTokenVerifier
	http     *http.Client
	browser  *http.Client
}

func newOP(t *testing.T, edit func(*devidp.Config)) *op {
	t.Helper()
	var provider *devidp.Provider
	server := httptest.NewServer(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { provider.ServeHTTP(w, r) }),
	)
	t.Cleanup(server.Close)
	return newOPAt(t, server.URL, http.DefaultTransport, &provider, edit)
}

// newOPInBubble is a provider without a network, for the fake clock of
// testing/synctest.
func newOPInBubble(t *testing.T, edit func(*devidp.Config)) *op {
	t.Helper()
	var provider *devidp.Provider
	return newOPAt(t, "http://127.0.0.1:9000", handlerTransport{&provider}, &provider, edit)
}

// handlerTransport takes a request straight to the provider.
type handlerTransport struct{ provider **devidp.Provider }

func (t handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	server := r.Clone(r.Context())
	if server.Body == nil {
		server.Body = http.NoBody
	}
	(*t.provider).ServeHTTP(w, server)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

func newOPAt(
	t *testing.T,
	base string,
	transport http.RoundTripper,
	provider **devidp.Provider,
	edit func(*devidp.Config),
) *op {
	t.Helper()
	cfg := devidp.Config{
		Issuer: base + "/realms/x",
		NewKey: func() (*rsa.PrivateKey, error) { return testenv.RSAKey(t), nil },
		Clients: []devidp.Client{
			{
				ID:                     "web",
				Secret:                 "a:b%c",
				RedirectURIs:           []string{redirectURI},
				PostLogoutRedirectURIs: []string{afterLogout},
			},
		},
	}
	if edit != nil {
		edit(&cfg)
	}
	var err error
	if *provider, err = devidp.New(cfg); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: transport}
	ctx := oidc.ClientContext(t.Context(), client)
	found, err := oidc.NewProvider(ctx, cfg.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	endpoint := found.Endpoint()
	endpoint.AuthStyle = oauth2.AuthStyleInHeader
	return &op{
		Provider: *provider, t: t, ctx: ctx, issuer: cfg.Issuer, http: client, browser: newBrowser(transport),
		oauth: oauth2.Config{
			ClientID:     "web",
			ClientSecret: "a:b%c",
			RedirectURL:  redirectURI,
			Endpoint:     endpoint,
			Scopes:       []string{"openid", "profile", "email"},
		},
		verifier: found.Verifier(&oidc.Config{ClientID: "web"}),
	}
}

// newBrowser keeps cookies, and follows no redirect.
func newBrowser(transport http.RoundTripper) *http.Client {
	jar, _ := cookiejar.New(nil) // has no error to give
	return &http.Client{
		Transport:     transport,
		Jar:           jar,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

var csrf = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// authorize opens an authorization URL, picks the user where there is a page,
// and returns what comes back.
func (o *op) authorize(user, authURL string) url.Values {
	o.t.Helper()
	resp, err := o.browser.Get(authURL)
	if err != nil {
		o.t.Fatal(err)
	}
	page, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode == 200 {
		m := csrf.FindSubmatch(page)
		if m == nil {
			o.t.Fatalf("a page without the hidden field csrf:\n%s", page)
		}
		if resp, err = o.browser.PostForm(authURL, url.Values{"csrf": {string(m[1])}, "user": {user}}); err != nil {
			o.t.Fatal(err)
		}
		resp.Body.Close()
	}
	back, err := resp.Location()
	if err != nil || !strings.HasPrefix(back.String(), redirectURI) {
		o.t.Fatalf("got %d to %v, want a redirect to the client:\n%s", resp.StatusCode, back, page)
	}
	return back.Query()
}

// signIn goes through the whole flow.
func (o *op) signIn(user string, options ...oauth2.AuthCodeOption) *oauth2.Token {
	o.t.Helper()
	verifier := oauth2.GenerateVerifier()
	answer := o.authorize(
		user,
		o.oauth.AuthCodeURL("state", append(options, oauth2.S256ChallengeOption(verifier), oidc.Nonce("nonce"))...),
	)
	token, err := o.oauth.Exchange(o.ctx, answer.Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		o.t.Fatalf("redeem: %v", err)
	}
	return token
}

func (o *op) refresh(token string) (*oauth2.Token, error) {
	return o.oauth.TokenSource(o.ctx, &oauth2.Token{RefreshToken: token}).Token()
}

func wantError(t *testing.T, err error, code string) {
	t.Helper()
	var refused *oauth2.RetrieveError
	if !errors.As(err, &refused) || refused.ErrorCode != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

func TestCodeFlow(t *testing.T) {
	o := newOP(t, nil)
	verifier := oauth2.GenerateVerifier()
	answer := o.authorize(
		"alice",
		o.oauth.AuthCodeURL(
			"st",
			oauth2.S256ChallengeOption(verifier),
			oidc.Nonce("n"),
			oauth2.SetAuthURLParam("acr_values", "gold"),
		),
	)
	if answer.Get("state") != "st" || answer.Get("iss") != o.issuer {
		t.Errorf("the answer: got %v", answer)
	}
	token, err := o.oauth.Exchange(o.ctx, answer.Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	id, err := o.verifier.Verify(o.ctx, token.Extra("id_token").(string))
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		SID, ACR, Name string
		AuthTime       int64 `json:"auth_time"`
	}
	if err := id.Claims(&claims); err != nil || id.Subject != "alice" || id.Nonce != "n" || claims.SID == "" ||
		claims.ACR != "gold" ||
		claims.Name == "" ||
		claims.AuthTime == 0 {
		t.Errorf("ID token: got %+v, %+v, %v", id, claims, err)
	}
	if err := id.VerifyAccessToken(token.AccessToken); err != nil {
		t.Errorf("at_hash: %v", err)
	}
	if _, err := o.oauth.Exchange(o.ctx, answer.Get("code"), oauth2.VerifierOption(verifier)); err == nil {
		t.Error("the code was redeemed twice")
	}
	if _, err := o.refresh(token.RefreshToken); err == nil {
		t.Error("what a code obtained is good after the code was used again")
	}
}

func TestCodeBinding(t *testing.T) {
	o := newOP(t, nil)
	verifier := oauth2.GenerateVerifier()
	code := o.authorize("alice", o.oauth.AuthCodeURL("", oauth2.S256ChallengeOption(verifier))).Get("code")
	_, err := o.oauth.Exchange(o.ctx, code, oauth2.VerifierOption(oauth2.GenerateVerifier()))
	wantError(t, err, "invalid_grant")
	stranger := o.oauth
	stranger.ClientSecret = "wrong"
	_, err = stranger.Exchange(o.ctx, code, oauth2.VerifierOption(verifier))
	wantError(t, err, "invalid_client")
	if answer := o.authorize("alice", o.oauth.AuthCodeURL("")); answer.Get("error") != "invalid_request" ||
		answer.Get("iss") == "" {
		t.Errorf("without PKCE: got %v", answer)
	}
	if answer := o.authorize("alice", o.oauth.AuthCodeURL("", oauth2.S256ChallengeOption(verifier),
		oauth2.SetAuthURLParam("prompt", "login"))); answer.Get(
		"code",
	) == "" {
		t.Errorf("prompt=login: got %v", answer)
	}
	if answer := o.authorize("", o.oauth.AuthCodeURL("", oauth2.S256ChallengeOption(verifier),
		oauth2.SetAuthURLParam("prompt", "login"))); answer.Get(
		"error",
	) != "access_denied" {
		t.Errorf("cancelled: got %v", answer)
	}
	evil := o.oauth
	evil.RedirectURL = "https://evil.example"
	if resp, err := o.browser.Get(evil.AuthCodeURL("", oauth2.S256ChallengeOption(verifier))); err != nil ||
		resp.StatusCode != 400 {
		t.Errorf("an unregistered redirect URI: got %v, %v", resp, err)
	}
}

func TestPromptNoneAndMaxAge(t *testing.T) {
	o := newOP(t, nil)
	ask := func(options ...oauth2.AuthCodeOption) url.Values {
		return o.authorize(
			"alice",
			o.oauth.AuthCodeURL("", append(options, oauth2.S256ChallengeOption(oauth2.GenerateVerifier()))...),
		)
	}
	none := oauth2.SetAuthURLParam("prompt", "none")
	if got := ask(none).Get("error"); got != "login_required" {
		t.Errorf("before: got %q", got)
	}
	ask()
	if got := ask(none); got.Get("code") == "" {
		t.Errorf("after: got %v", got)
	}
	if got := ask(none, oauth2.SetAuthURLParam("max_age", "0")).Get("error"); got != "login_required" {
		t.Errorf("max_age=0: got %q", got)
	}
}

func TestRefreshTokensRotateAndReuseEndsTheFamily(t *testing.T) {
	o := newOP(t, nil)
	first := o.signIn("alice")
	second, err := o.refresh(first.RefreshToken)
	if err != nil || second.RefreshToken == first.RefreshToken {
		t.Fatalf("refresh: got %v, %v", second, err)
	}
	_, err = o.refresh(first.RefreshToken)
	wantError(t, err, "invalid_grant")
	_, err = o.refresh(second.RefreshToken)
	wantError(t, err, "invalid_grant")
	if got := o.Stats(); got.Reuses != 1 || got.Tokens["refresh_token"] != 3 || len(got.LiveRefreshTokens) != 0 {
		t.Errorf("stats: got %+v", got)
	}
}

func TestOfTenRefreshesAtOnceOneSucceeds(t *testing.T) {
	o := newOP(t, nil)
	token := o.signIn("alice")
	results := make(chan error, 10)
	var all sync.WaitGroup
	for range cap(results) {
		all.Go(func() {
			_, err := o.refresh(token.RefreshToken)
			results <- err
		})
	}
	all.Wait()
	close(results)
	succeeded := 0
	for err := range results {
		if err == nil {
			succeeded++
		}
	}
	if succeeded != 1 {
		t.Errorf("%d of 10 succeeded", succeeded)
	}
}

func TestRefreshGraceReturnsTheSameSuccessor(t *testing.T) {
	o := newOP(t, func(c *devidp.Config) { c.RefreshGrace = time.Minute })
	token := o.signIn("alice")
	first, err := o.refresh(token.RefreshToken)
	if err != nil {
		t.Fatal(err)
	}
	again, err := o.refresh(token.RefreshToken)
	if err != nil || again.RefreshToken != first.RefreshToken {
		t.Errorf("got %v, %v, want the same successor", again, err)
	}
}

func TestKeysRotate(t *testing.T) {
	o := newOP(t, nil)
	old := o.signIn("alice").Extra("id_token").(string)
	if _, err := o.verifier.Verify(o.ctx, old); err != nil {
		t.Fatal(err)
	}
	if err := o.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	for _, raw := range []string{old, o.signIn("alice").Extra("id_token").(string)} {
		if _, err := o.verifier.Verify(o.ctx, raw); err != nil {
			t.Error(err)
		}
	}
	if got := o.Stats().JWKSFetches; got != 2 {
		t.Errorf("%d fetches of the key set, want 2", got)
	}
}

func TestUserinfoClientCredentialsAndRevocation(t *testing.T) {
	o := newOP(t, nil)
	token := o.signIn("bob")
	userinfo := func(access string) (int, string) {
		req, _ := http.NewRequest("GET", o.issuer+"/userinfo", nil)
		req.Header.Set("Authorization", "Bearer "+access)
		resp, err := o.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if status, body := userinfo(token.AccessToken); status != 200 || !strings.Contains(body, `"sub":"bob"`) ||
		!strings.Contains(body, "bob@example.com") {
		t.Errorf("userinfo: got %d %s", status, body)
	}
	if status, _ := userinfo("x"); status != 401 {
		t.Errorf("userinfo without a token: got %d", status)
	}
	if status, body := o.post("/token", url.Values{"grant_type": {"client_credentials"}, "scope": {"api"}},
		nil); status != 200 ||
		body["refresh_token"] != nil ||
		body["id_token"] != nil ||
		body["scope"] != "api" {
		t.Errorf("client credentials: got %d %v", status, body)
	}
	for range 2 { // unknown the second time, which is as good
		if status, _ := o.post("/revoke", url.Values{"token": {token.RefreshToken}}, nil); status != 200 {
			t.Errorf("revoke: got %d", status)
		}
	}
	_, err := o.refresh(token.RefreshToken)
	wantError(t, err, "invalid_grant")
}

// post posts a form as the client.
func (o *op) post(path string, form url.Values, header http.Header) (int, map[string]any) {
	o.t.Helper()
	req, err := http.NewRequest("POST", o.issuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		o.t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(url.QueryEscape(o.oauth.ClientID), url.QueryEscape(o.oauth.ClientSecret))
	resp, err := o.http.Do(req)
	if err != nil {
		o.t.Fatal(err)
	}
	defer resp.Body.Close()
	body := make(map[string]any)
	json.NewDecoder(resp.Body).Decode(&body)
	if nonce := resp.Header.Get("DPoP-Nonce"); nonce != "" {
		body["nonce"] = nonce
	}
	return resp.StatusCode, body
}

func TestPushedRequests(t *testing.T) {
	o := newOP(t, nil)
	verifier := oauth2.GenerateVerifier()
	u, _ := url.Parse(o.oauth.AuthCodeURL("st", oauth2.S256ChallengeOption(verifier)))
	status, body := o.post("/par", u.Query(), nil)
	uri, _ := body["request_uri"].(string)
	if status != 201 || uri == "" {
		t.Fatalf("got %d %v", status, body)
	}
	short := o.issuer + "/authorize?" + url.Values{"client_id": {"web"}, "request_uri": {uri}}.Encode()
	answer := o.authorize("alice", short)
	if _, err := o.oauth.Exchange(o.ctx, answer.Get("code"), oauth2.VerifierOption(verifier)); err != nil ||
		answer.Get("state") != "st" {
		t.Errorf("got %v, %v", answer, err)
	}
	if resp, err := o.browser.Get(short); err != nil || resp.StatusCode != 400 {
		t.Errorf("a pushed request used twice: got %v, %v", resp, err)
	}
}

func TestLogout(t *testing.T) {
	logouts := make(chan string, 4)
	client := httptest.NewServer(
		http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { logouts <- r.PostFormValue("logout_token") }),
	)
	defer client.Close()
	o := newOP(t, func(c *devidp.Config) { c.Clients[0].BackchannelLogoutURI = client.URL })
	token := o.signIn("alice")
	id := token.Extra("id_token").(string)
	out := func(q url.Values) (int, string) {
		resp, err := o.browser.Get(o.issuer + "/logout?" + q.Encode())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("Location")
	}
	for name, q := range map[string]url.Values{
		"evil redirect": {"id_token_hint": {id}, "post_logout_redirect_uri": {"https://evil.example"}},
		"evil hint":     {"id_token_hint": {id + "x"}, "post_logout_redirect_uri": {afterLogout}},
		"no client":     {"post_logout_redirect_uri": {afterLogout}},
	} {
		if status, location := out(q); status != 400 || location != "" {
			t.Errorf("%s: got %d to %q, want 400", name, status, location)
		}
	}
	if status, location := out(url.Values{"id_token_hint": {id}, "post_logout_redirect_uri": {afterLogout},
		"state": {"s"}}); status != 303 ||
		location != afterLogout+"?state=s" {
		t.Errorf("got %d to %q", status, location)
	}
	logout, err := o.verifier.VerifyLogout(o.ctx, <-logouts)
	if err != nil || logout.Subject != "alice" || logout.SessionID == "" {
		t.Errorf("logout token: got %+v, %v", logout, err)
	}
	_, err = o.refresh(token.RefreshToken)
	wantError(t, err, "invalid_grant")

	o.signIn("alice")
	if err := o.EndUser(context.Background(), "alice"); err != nil {
		t.Error(err)
	}
	if _, err := o.verifier.VerifyLogout(o.ctx, <-logouts); err != nil {
		t.Error(err)
	}
	if got := o.Stats(); got.BackchannelLogouts != 2 || len(got.LiveRefreshTokens) != 0 {
		t.Errorf("stats: got %+v", got)
	}
}

func TestOnlyLoopbackHostsAreServed(t *testing.T) {
	for _, issuer := range []string{"https://id.example.com", "http://id.example.com", "http://10.0.0.1",
		"https://10.0.0.1", "", "http://localhost.evil.example"} {
		if _, err := devidp.New(devidp.Config{Issuer: issuer}); err == nil {
			t.Errorf("%q: no error", issuer)
		}
	}
}

func TestNewReportsAllMistakes(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, err = devidp.New(devidp.Config{
		Issuer: "https://id.example.com",
		Clients: []devidp.Client{
			{},
			{
				ID:                     "a",
				Secret:                 "s",
				RedirectURIs:           []string{"/callback"},
				PostLogoutRedirectURIs: []string{"https://app.example/#x"},
				BackchannelLogoutURI:   "ftp://app.example",
			},
			{ID: "a", Secret: "s"},
			{ID: "b", Keys: []jose.JSONWebKey{{Key: private}}},
		},
		Users:          []devidp.User{{Name: "Nobody"}, {Sub: "alice"}, {Sub: "alice"}},
		AccessTokenTTL: -time.Second,
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`issuer "https://id.example.com"`, `client 0: ID ""`, "client 0: Secret, Keys or Certificate is required",
		`client 1: "/callback"`, `client 1: "https://app.example/#x"`, `client 1: "ftp://app.example"`,
		`client 2: ID "a"`, "client 3: key 0", `user 0: Sub ""`, `user 2: Sub "alice"`, "AccessTokenTTL: -1s",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("nothing says %s:\n%v", want, err)
		}
	}
}

func TestIssuersOfEveryShape(t *testing.T) {
	for issuer, want := range map[string]string{
		"http://127.0.0.1:9000":          "http://127.0.0.1:9000/authorize",
		"http://localhost:9000/":         "http://localhost:9000/authorize",
		"http://[::1]:9000/realms/x":     "http://[::1]:9000/realms/x/authorize",
		"http://localhost/realms/x/":     "http://localhost/realms/x/authorize",
		"http://localhost:9000/a//b":     "",
		"http://localhost:9000/a/../b":   "",
		"http://localhost:9000/a/{b}":    "",
		"http://localhost:9000/a%2fb":    "",
		"http://localhost:9000/?a=b":     "",
		"http://localhost:9000/#":        "",
		"http://alice@localhost:9000/op": "",
	} {
		p, err := devidp.New(
			devidp.Config{Issuer: issuer, NewKey: func() (*rsa.PrivateKey, error) { return testenv.RSAKey(t), nil }},
		)
		if (err == nil) != (want != "") {
			t.Errorf("%s: got %v", issuer, err)
		}
		if err != nil {
			continue
		}
		w := httptest.NewRecorder()
		p.ServeHTTP(
			w,
			httptest.NewRequest("GET", strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", nil),
		)
		var metadata struct {
			Issuer        string
			Authorization string `json:"authorization_endpoint"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &metadata); err != nil || metadata.Issuer != issuer ||
			metadata.Authorization != want {
			t.Errorf("%s: got %d %+v, %v", issuer, w.Code, metadata, err)
		}
	}
}
