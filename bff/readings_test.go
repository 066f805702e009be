package bff_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

// sendTarget sends a request target unchanged, without the normalisation of a
// client, and returns the response with its body.
func sendTarget(t *testing.T, a *app, target string, header ...string) *bfftest.Response {
	t.Helper()
	host := strings.TrimPrefix(a.url, "http://")
	c, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lines := append([]string{
		"GET " + target + " HTTP/1.1", "Host: " + host, "X-CSRF: 1", "Connection: close",
	}, header...)
	io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "GET"})
	if err != nil {
		t.Fatalf("%s: %v", target, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return &bfftest.Response{Response: resp, Text: string(text)}
}

// readingsApp starts a broker with a route, a longer route below it, and a
// frontend.
func readingsApp(t *testing.T) (a *app, outer, admin *brokertest.Echo) {
	outer, admin = brokertest.NewEcho(t), brokertest.NewEcho(t)
	return newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{Path: "/api/", Upstream: []string{outer.URL}, Token: "none"},
			{Path: "/api/admin/", Upstream: []string{admin.URL}, Token: "none"},
			{Path: "/api/sk/", Upstream: []string{admin.URL}, Token: "none"},
			{Path: "/Docs/v1", Upstream: []string{outer.URL}, Token: "none"},
		}
	}), outer, admin
}

func TestPathThatMayMatchALongerRouteIsRefused(t *testing.T) {
	t.Parallel()
	a, outer, admin := readingsApp(t)
	for _, target := range []string{
		"/api/admin;x/users", "/api/Admin/users", "/api/admin", "/api/ADMIN", "/api/%41dmin/users",
		"/api/admin;/users", "/api/admin%3Bx/users",
		"/api/admin./users", "/api/admin../users", "/api/admin%20/users", "/api/admin.%20.%20/users",
		"/api/admin.", "/api/Admin.;x=y/users", "/api/%20admin/users", "/api/%20/admin/x",
		"/api/.../admin/x", "/%20/api/x",
		"/api/admin%C2%A0/users", "/api/admin%3Fx", "/api/admin%23x", "/api/admin%3Fx/users",
		"/API/admin/users", "/Api/Admin;a/users",
		// ſ, Kelvin sign, ı, İ
		"/api/%C5%BFk/x", "/api/s%E2%84%AA/x", "/api/SK/x", "/api/adm%C4%B1n/x", "/api/adm%C4%B0n/x",
		// ａ, Ａ, ‥, ／, ；
		"/api/%EF%BD%81dmin/x", "/api/%EF%BC%A1dmin/x", "/api/x/%E2%80%A5/admin/x",
		"/api%EF%BC%8Fadmin/x", "/api/x%EF%BC%8F..%EF%BC%8Fadmin", "/%EF%BD%81pi/x", "/api/admin%EF%BC%9Bx/users",
		// Not under a route or the prefix as they are written.
		"/API/x", "/Api", "/api;x/y", "/api./x", "/api%20/x", "/BFF/session", "/bff;x/session",
		"/bff./session", "/Bff", "/docs/v1", "/Docs/V1/x", "/docs/v1;x", "/DOCS/v1/",
		// Double encoded, or with segments that some servers merge or resolve.
		"/api/%2561dmin/users", "/api//admin/users", "/api/x/../admin/users", "/api/%2e/admin/users",
		"/api/admin%2Fusers", "/api/x%2F..%2Fadmin/users", "/api%5Cadmin/users", "/api/..;/api/admin",
		"/%61pi%2Fx", "/x/..%2Fapi/y", "/x/..;y/api/z", "/x/.%2e/api/y", "/x/..%20/api/y", "//api/x",
		"/.//api/x", "/%2F/api/x", "/x%5C..%5Capi/y", "/%2561pi/x", "/%252561pi/x",
		"/%c1%a1pi/x", "/%e0%81%a1pi/x", "/%f0%80%81%a1pi/x", "/x%c0%af..%c0%afapi/y",
		"/%25u0061pi/x", "/api%00/x", "/api%00x", "/x/..%2Fbff/session", "/bff//session", "/;/api/x", "/;x/api/y",
	} {
		resp := sendTarget(t, a, target)
		if resp.StatusCode != 400 || resp.Code() != "ambiguous_path" {
			t.Errorf("%s: got %d %q, want 400 ambiguous_path: %.80s", target, resp.StatusCode, resp.Code(), resp.Text)
		}
	}
	if outer.Calls()+admin.Calls() > 0 {
		t.Errorf("the upstreams got %d requests", outer.Calls()+admin.Calls())
	}
	lines := a.logs.lines(t, "request")
	for _, l := range lines {
		if l["status"] == 400.0 && !strings.HasPrefix(fmt.Sprint(l["err"]), "ambiguous_path: path ") {
			t.Errorf("the log line does not name the cause: %v", l)
		}
	}
}

func TestUnambiguousPathIsSentUnchanged(t *testing.T) {
	t.Parallel()
	a, outer, admin := readingsApp(t)
	for _, test := range []struct {
		target string
		echo   *brokertest.Echo
	}{
		{"/api/x", outer}, {"/api/administrators", outer}, {"/api/administrators/x", outer},
		{"/api/x/admin/y", outer}, {"/api/x;admin/y", outer}, {"/api/X.", outer}, {"/api/admin-x/y", outer},
		{"/api/.admin/x", outer}, {"/api/adm/in", outer}, {"/api/%61", outer},
		{"/api/A%20B;c=d/e.f?x=/api/admin/", outer}, {"/api/a|b", outer},
		{`/api/{id}/^"<x>` + "`", outer}, {"/api/[1]", outer},
		{"/api/caf%C3%A9/cafe%CC%81", outer}, {"/api/%E6%BC%A2%E5%AD%97%EF%BC%8F1%EF%BC%8E", outer}, // é twice, 漢字／1．
		{"/api/%7e%7E%2d", outer}, {"/api/a'b(c)*!", outer}, {"/api/", outer}, {"/api/?", outer},
		{"/api/x?a=%zz&b=|", outer},
		{"/api/admin/", admin}, {"/api/admin/Users;x/y.", admin}, {"/api/%61dmin/x", admin},
		{"/Docs/v1", outer}, {"/Docs/v1/", outer}, {"/Docs/v1/x", outer},
	} {
		before := test.echo.Calls()
		switch got := echoed(t, sendTarget(t, a, test.target)).URI; {
		case got != test.target:
			t.Errorf("got %v, want %v", got, test.target)
		case test.echo.Calls() != before+1:
			t.Errorf("requests to test.echo: got %d, want %d", test.echo.Calls(), before+1)
		}
	}
	if resp := sendTarget(t, a, "/api"); resp.StatusCode != 404 || resp.Code() != "not_found" {
		t.Errorf("/api: got %d %s, want 404 not_found", resp.StatusCode, resp.Code())
	}
}

func TestPathOutsideAllRoutesIsServedByTheFrontend(t *testing.T) {
	t.Parallel()
	a, _, _ := readingsApp(t)
	for _, target := range []string{
		"/files/group%2Fproject", "/search/a%2520b", "/orders//42", "/", "/apix", "/ap",
		"/files/a%5Cb", "/files/..%2Fx", "/a/../b", "/a/..;/b", "/x/", "//x", "/x/%2e%2e/%2e%2e/y", "/x/api/y",
		"/caf%e9", "/x%00y", "/x%252Fapi/y", "/x%2Fapi%2Fy", "/x;y/z", "/Files/./x", "/%2f",
		"/x//../apix", "/100%25", "/x%3Fy%23z",
	} {
		resp := sendTarget(t, a, target, "Sec-Fetch-Mode: navigate")
		if resp.StatusCode != 200 || resp.Text != "the app" {
			t.Errorf("%s: got %d %.80s, want the app", target, resp.StatusCode, resp.Text)
		}
	}
	for _, target := range []string{
		"/x#y", "/x?a#b", "/api/x#y", "/é", "/x?é", "/" + strings.Repeat("%2F", 4000),
		"/%" + strings.Repeat("25", 300) + "41",
	} {
		switch resp := sendTarget(t, a, target); {
		case resp.StatusCode != 400:
			t.Errorf("%.40s: status: got %d, want 400:\n%s", target, resp.StatusCode, resp.Text)
		case resp.Code() != "ambiguous_path":
			t.Errorf("%.40s: code: got %q, want ambiguous_path", target, resp.Code())
		}
	}
}

func TestEncodedSlashesPassIfAllowed(t *testing.T) {
	t.Parallel()
	strict, pass := brokertest.NewEcho(t), brokertest.NewEcho(t)
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{Path: "/api/", Upstream: []string{strict.URL}, Token: "none"},
			{Path: "/api/gitlab/", Upstream: []string{pass.URL}, Token: "none", EncodedSlashes: "pass"},
			{
				Path:           "/stripped/",
				Upstream:       []string{pass.URL + "/v4"},
				Token:          "none",
				EncodedSlashes: "pass",
				StripPrefix:    true,
			},
		}
	})
	for target, want := range map[string]string{
		"/api/gitlab/projects/group%2Fproject?x=%2F": "/api/gitlab/projects/group%2Fproject?x=%2F",
		"/api/gitlab/queues/%2F/name":                "/api/gitlab/queues/%2F/name",
		"/api/gitlab/queues/%2f%2F":                  "/api/gitlab/queues/%2f%2F",
		"/api/gitlab/@scope%2fname/a|b":              "/api/gitlab/@scope%2fname/a|b",
		"/stripped/a%2Fb/c":                          "/v4/a%2Fb/c",
		"/stripped/%2F":                              "/v4/%2F",
		"/%73tripped/a%2Cb%2Fc":                      "/v4/a%2Cb%2Fc",
	} {
		if got := echoed(t, sendTarget(t, a, target)).URI; got != want {
			t.Errorf("%s arrives as %s, want %s", target, got, want)
		}
	}
	for _, target := range []string{
		"/api/x%2Fy", "/api/gitlab%2Fx", "/api%2Fgitlab/x", "/api/gitlab/a%2F..%2Fb",
		"/api/gitlab/..%2Fadmin", "/api/gitlab/%2F..", "/api/gitlab/x%2F..;y", "/api/gitlab/x%2F.",
		"/api/gitlab/x%2F%2e%2e",
		"/api/gitlab/x%5Cy%2Fz", "/api/gitlab/x//y%2Fz", "/api/gitlab/x%252Fy",
		"/api/gitlab/x%2Fy%00", "/api/gitlab/%ff%2F", "/API/gitlab/x%2Fy", "/api/GitLab/x%2Fy", "/stripped%2Fx",
	} {
		switch resp := sendTarget(t, a, target); {
		case resp.StatusCode != 400:
			t.Errorf("%s: status: got %d, want 400:\n%s", target, resp.StatusCode, resp.Text)
		case resp.Code() != "ambiguous_path":
			t.Errorf("%s: code: got %q, want ambiguous_path", target, resp.Code())
		}
	}
	if strict.Calls() > 0 {
		t.Errorf("the upstream without the option got %d requests", strict.Calls())
	}
}

func TestEncodedSlashCannotHideALongerRoute(t *testing.T) {
	t.Parallel()
	for longer, mistake := range map[string]bool{
		"/api/admin/": true,
		"/api":        false,
		"/apix/":      false,
		"/other/":     false,
		"/API/x":      true,
	} {
		_, err := bff.New(bff.Config{Routes: []bff.Route{
			{Path: "/api/", Upstream: []string{"http://a"}, Token: "none", EncodedSlashes: "pass"},
			{Path: longer, Upstream: []string{"http://b"}, Token: "none"},
		}})
		if got := strings.Contains(fmt.Sprint(err), "Routes[0].EncodedSlashes: the route"); got != mistake {
			t.Errorf("a route %s: a mistake %v, want %v: %v", longer, got, mistake, err)
		}
	}
	_, err := bff.New(bff.Config{
		Routes: []bff.Route{
			{Path: "/api/", Upstream: []string{"http://a"}, Token: "none", EncodedSlashes: "yes", Documents: "deny"},
		},
	})
	for _, want := range []string{
		`Routes[0].EncodedSlashes: "yes" is not pass`, `Routes[0].Documents: "deny" is not allow`,
	} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("want %s, got %v", want, err)
		}
	}
}

func TestEveryTransportSendsThePathUnchanged(t *testing.T) {
	t.Parallel()
	handler := brokertest.NewEcho(t).Config.Handler
	overTLS, trust := startHTTP2(t, handler)
	h2c := startH2C(t, handler)
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{
				Path:           "/tls/",
				Upstream:       []string{overTLS},
				TLS:            trust,
				Token:          "none",
				EncodedSlashes: "pass",
			},
			{
				Path:           "/h2c/",
				Upstream:       []string{h2c},
				Token:          "none",
				EncodedSlashes: "pass",
			},
			{
				Path:        "/cut/",
				Upstream:    []string{h2c + "/v%201"},
				Token:       "none",
				StripPrefix: true,
			},
		}
	})
	for _, rest := range []string{"a|b", `{id}/^"<x>` + "`?q=|", "a%2Fb|c", "%7e%41", "[1]?a=%zz", "?", ""} {
		for _, route := range []string{"/tls/", "/h2c/", "/cut/"} {
			target, want := route+rest, route+rest
			if route == "/cut/" {
				if strings.Contains(rest, "%2F") {
					continue
				}
				want = "/v%201/" + rest
			}
			if got := echoed(t, sendTarget(t, a, target)).URI; got != want {
				t.Errorf("%s arrives as %s, want %s", target, got, want)
			}
		}
	}
}
