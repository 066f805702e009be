package bff_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func TestClaimHeaderCannotBeMisspelt(t *testing.T) {
	t.Parallel()
	a, b := newRoutedApp(t, bff.Route{
		Path:        "/who/",
		Token:       "optional",
		Headers:     map[string]string{"X-User": "sub", "Priority": "email", "X-Roles2": "roles"},
		HeadersJSON: map[string]string{"X-Claims": "roles"},
	})
	forged := []string{
		"X.User", "X_User", "X-USER", "XUser", "x-u-s-e-r", "X~User", "X'User", "X--User",
		"-X-User", "X-User-", "priority", "PRI.ORITY", "X.Roles2", "X.Claims", "XCLAIMS",
	}
	for name, browser := range map[string]func() http.Header{
		"signed in": func() http.Header { return echoed(t, b.Fetch("GET", "/who/x", pairs(forged, "root")...)).Header },
		"signed out": func() http.Header {
			return echoed(t, a.browser().Fetch("GET", "/who/x", pairs(forged, "root")...)).Header
		},
	} {
		got := browser()
		for header, values := range got {
			if strings.Contains(strings.Join(values, ","), "root") {
				t.Errorf("%s: the upstream got %s: %q", name, header, values)
			}
		}
	}
	switch got := echoed(t, b.Fetch("GET", "/who/x", pairs(forged, "root")...)).Header; {
	case got.Get("X-User") != "alice":
		t.Errorf("claim headers: X-User: got %q, want alice", got.Get("X-User"))
	case got.Get("Priority") != "alice@example.com":
		t.Errorf("claim headers: Priority: got %q, want alice@example.com", got.Get("Priority"))
	}
	pass := []string{"X-Users", "X-User-Id", "X.Username", "XXUser", "X-Roles"}
	got := echoed(t, b.Fetch("GET", "/who/x", pairs(pass, "kept")...)).Header
	for _, header := range pass {
		if got[http.CanonicalHeaderKey(header)] == nil {
			t.Errorf("header %s is missing at the upstream", header)
		}
	}
}

func pairs(names []string, value string) []string {
	var all []string
	for _, name := range names {
		all = append(all, name, value)
	}
	return all
}

func TestClaimListElementsCannotBeSplit(t *testing.T) {
	t.Parallel()
	a, b := newRoutedApp(t, bff.Route{Path: "/who/", Token: "user",
		Headers: map[string]string{
			"X-Roles":  "roles",
			"X-Name":   "name",
			"X-Padded": "padded",
			"X-Lines":  "lines",
			"X-Only":   "only",
		},
		HeadersJSON: map[string]string{
			"X-Roles-Json": "roles",
			"X-Address":    "address",
			"X-Name-Json":  "name",
			"X-None":       "nothing",
		}},
		func(a *app) {
			a.provider.SetHooks(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
				claims["roles"] = []any{"x,admin", "user", " root", "ops\t", 7}
				claims["name"] = "Dö, John 😀"
				claims["padded"] = "admin "
				claims["lines"] = "a\nb"
				claims["only"] = []any{","}
				claims["address"] = map[string]any{"country": "NO", "street": "a,\"b\"\n"}
			}})
		})
	got := echoed(t, b.Fetch("GET", "/who/x")).Header
	for header, want := range map[string]string{
		"X-Roles": "user,7", "X-Name": "Dö, John 😀", "X-Padded": "", "X-Lines": "", "X-Only": "",
		"X-Roles-Json": `["x,admin","user"," root","ops\t",7]`,
		"X-Address":    `{"country":"NO","street":"a,\"b\"\n"}`,
		"X-Name-Json":  `"D\u00f6, John \ud83d\ude00"`, "X-None": "",
	} {
		if values := strings.Join(got.Values(header), "|"); values != want {
			t.Errorf("%s: got %q, want %q", header, values, want)
		}
	}
	warned := make(map[string]int)
	for _, line := range a.logs.lines(t, "claim not sent to the upstream") {
		switch {
		case line["level"] != "WARN":
			t.Errorf("level: got %v, want WARN", line["level"])
		case line["session"] == nil:
			t.Error("session is missing")
		case fmt.Sprint(line["problem"]) == "":
			t.Error("problem is missing")
		}
		warned[fmt.Sprint(line["header"])]++
	}
	want := map[string]int{"X-Roles": 1, "X-Padded": 1, "X-Lines": 1, "X-Only": 1}
	if fmt.Sprint(warned) != fmt.Sprint(want) {
		t.Errorf("warnings: got %v, want %v", warned, want)
	}
}

func TestIdentityHeadersOfClientsAreRemoved(t *testing.T) {
	t.Parallel()
	_, b := newRoutedApp(t, bff.Route{
		Path:    "/grafana/",
		Token:   "user",
		Headers: map[string]string{"X-WEBAUTH-USER": "sub", "Remote-User": "email"},
	})
	names := []string{
		"Proxy", "Proxy-User", "Remote-User", "Remote.User", "RemoteUser", "X-Remote-User",
		"X-Remote-Group", "X-Remote-Extra-Scopes", "X-Forwarded-User", "X.Forwarded.Email",
		"XForwardedFor", "X-Auth-Request-Email", "X-WEBAUTH-USER",
		"X-WebAuth-Role", "X-Authenticated-User", "X-Authenticated-Userid", "X-Consumer-Username",
		"X-Authentik-Username", "X-Pomerium-Jwt-Assertion", "X-Ms-Client-Principal-Name",
		"X-Goog-Authenticated-User-Email", "X-Goog-Iap-Jwt-Assertion",
		"X-Amzn-Oidc-Data", "Cf-Access-Jwt-Assertion", "Tailscale-User-Login", "OIDC-CLAIM-sub",
		"X-Userinfo", "SSL-Client-Verify", "X-SSL-Client-S-DN", "X-Client-Cert", "Client-Cert",
		"X-Client-Verify", "X-Real-IP", "X.Real.IP", "CF-Connecting-IP",
		"Fastly-Client-Ip", "X.Original.URL", "X-HTTP-Method-Override", "X.HTTP.Method",
		"Authorization!", "D.P.o.P", "X-Host", "X-Client-Ip", "X.Client.Ip", "X-Cluster-Client-Ip",
		"X.Cluster.Client.Ip", "True-Client-Ip", "True.Client.Ip", "Client-Ip", "CF-Connecting-IPv6",
		"Fly-Client-IP", "X-Azure-ClientIP", "X-AppEngine-User-IP", "X-Envoy-External-Address",
		"X-ProxyUser-IP", "X-Remote-IP", "X-Remote-Addr", "Remote-Addr", "X-HTTP-Host-Override",
		"Front-End-Https", "X-Url-Scheme", "Remote-Name", "Remote-Email", "Remote-Group",
		"Remote-Groups", "X-ID-Token", "X-Client-DN", "X-SSL-Cert", "SSL-Cert", "X-Auth-Username",
		"X-Auth-Userid", "X-Auth-Subject", "X-Auth-Email", "X-Auth-Groups", "X-Auth-Roles",
		"X-Auth-Audience", "X-Proxy-User", "X-Trusted-User", "X-Credential-Identifier",
		"X-Anonymous-Consumer", "X-Vouch-User", "X-Ms-Token-Aad-Id-Token", "OIDC_access_token",
		"OIDC-access-token", "OIDC-id-token",
	}
	got := echoed(t, b.Fetch("GET", "/api/x", pairs(names, "forged-by-client")...)).Header
	for header, values := range got {
		if strings.Contains(strings.Join(values, ","), "forged-by-client") {
			t.Errorf("the upstream got %s: %q", header, values)
		}
	}
	ordinary := []string{
		"X-Auth-Token", "X-Api-Key", "X-Requested-With", "X-Trace-Id", "X-Amzn-Trace-Id",
		"X-Remote-Debug", "X-Tenant.Id", "Idempotency-Key", "Oidc", "X-User", "Remote",
		"X-Correlation-Id", "If-Match", "Tus-Resumable",
	}
	got = echoed(t, b.Fetch("GET", "/api/x", pairs(ordinary, "kept")...)).Header
	for _, header := range ordinary {
		if got[http.CanonicalHeaderKey(header)] == nil {
			t.Errorf("header %s is missing at the upstream", header)
		}
	}
	switch got := echoed(t, b.Fetch("GET", "/grafana/x", pairs(names, "forged-by-client")...)).Header; {
	case got.Get("X-Webauth-User") != "alice":
		t.Errorf("claim headers: X-Webauth-User: got %q, want alice", got.Get("X-Webauth-User"))
	case got.Get("Remote-User") != "alice@example.com":
		t.Errorf("claim headers: Remote-User: got %q, want alice@example.com", got.Get("Remote-User"))
	}
}

func TestClaimHeadersThatSomeServersConfuse(t *testing.T) {
	t.Parallel()
	for want, route := range map[string]bff.Route{
		`"X.User" is configured twice`: {
			Path:        "/x/",
			Token:       "user",
			Upstream:    []string{"http://x"},
			Headers:     map[string]string{"X-User": "sub"},
			HeadersJSON: map[string]string{"X.User": "sub"},
		},
		`Routes[0].HeadersJSON: "X-Forwarded-For" is not a header`: {
			Path:        "/x/",
			Token:       "user",
			Upstream:    []string{"http://x"},
			HeadersJSON: map[string]string{"X-Forwarded-For": "sub"},
		},
		`Routes[0].HeadersJSON: "X-User" has no claim`: {
			Path:        "/x/",
			Token:       "user",
			Upstream:    []string{"http://x"},
			HeadersJSON: map[string]string{"X-User": ""},
		},
		`none excludes headers`: {
			Path:        "/x/",
			Token:       "none",
			Upstream:    []string{"http://x"},
			HeadersJSON: map[string]string{"X-User": "sub"},
		},
	} {
		if _, err := bff.New(bff.Config{Routes: []bff.Route{route}}); !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("want %s, got %v", want, err)
		}
	}
}

// RFC 6749, section 3.3: scopes are compared octet by octet.
func TestScopesAndClaimsAreComparedExactly(t *testing.T) {
	t.Parallel()
	for _, granted := range []string{
		"a\u017fk", "as\u212a", "ASK", "Ask", "asks", "as", "ask\u200b", "ask,x", "ask\u00a0x",
	} {
		a := newApp(t, func(a *app, cfg *bff.Config) {
			a.provider.SetHooks(devidp.Hooks{
				EditTokenResponse: func(_ string, _ int, body map[string]any) { body["scope"] = "openid " + granted },
				EditIDToken:       func(_, claims map[string]any) { claims["role"], claims["acr"] = granted, granted },
			})
			cfg.Routes = []bff.Route{
				{
					Path:     "/scope/",
					Token:    "user",
					Upstream: []string{a.echo.URL},
					Require:  bff.Require{Scopes: []string{"ask"}},
				},
				{
					Path:     "/claim/",
					Token:    "user",
					Upstream: []string{a.echo.URL},
					Require:  bff.Require{Claims: map[string][]string{"role": {"ask"}}},
				},
				{
					Path:     "/acr/",
					Token:    "user",
					Upstream: []string{a.echo.URL},
					Require:  bff.Require{ACR: []string{"ask"}},
				},
			}
		})
		b := a.browser()
		if resp := b.SignIn("alice", ""); resp.StatusCode != 303 {
			t.Logf("%+q is refused at sign-in: %d", granted, resp.StatusCode)
			continue
		}
		for path, code := range map[string]string{
			"/scope/x": "insufficient_scope",
			"/claim/x": "forbidden",
			"/acr/x":   "insufficient_user_authentication",
		} {
			if resp := b.Fetch("GET", path); resp.Code() != code {
				t.Errorf("%+q at %s: got %d %s, want %s", granted, path, resp.StatusCode, resp.Code(), code)
			}
		}
	}
}
