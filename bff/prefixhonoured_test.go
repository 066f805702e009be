package bff_test

import (
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// An upstream that honours X-Forwarded-Prefix uses the prefix in cookies and
// redirects. Its cookies apply to the whole route, not to a path below it.
func TestUpstreamThatHonoursForwardedPrefix(t *testing.T) {
	t.Parallel()
	u := newScriptedUpstream(t)
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.Routes = []bff.Route{
			{Path: "/orders/", Upstream: []string{u.url}, Token: "none", StripPrefix: true},
			{Path: "/exact", Upstream: []string{u.url}, Token: "none", StripPrefix: true},
			{Path: "/plain", Upstream: []string{u.url}, Token: "none"},
			{Path: "/", Upstream: []string{u.url + "/v1"}, Token: "none", StripPrefix: true},
		}
	})
	for _, test := range []struct{ ask, sent, want string }{
		{"/orders/x", "Set-Cookie: a=1; Path=/orders", "a=1; Path=/orders/"},
		{"/orders/x", "Set-Cookie: a=1; Path=/orders/", "a=1; Path=/orders/"},
		{"/orders/x", "Set-Cookie: a=1; Path=/orders/cart", "a=1; Path=/orders/cart"},
		{"/orders/x", "Set-Cookie: a=1; Path=/ordersx", "a=1; Path=/orders/ordersx"},
		{"/orders/x", "Set-Cookie: a=1; Path=/cart", "a=1; Path=/orders/cart"},
		{"/exact", "Set-Cookie: a=1; Path=/exact", "a=1; Path=/exact"},
		{"/exact/x", "Set-Cookie: a=1; Path=/exact/x", "a=1; Path=/exact/x"},
		{"/x", "Set-Cookie: a=1; Path=/v1/x", "a=1; Path=/x"}, // this route sends no prefix
		{"/orders/x", "Location: /orders", "/orders/"},
		{"/orders/x", "Location: /orders?x=1", "/orders/?x=1"},
		{"/orders/x", "Location: /orders/cart", "/orders/cart"},
		{"/orders/x", "Location: " + u.url, "/orders/"},
		{"/exact", "Location: /exact", "/exact"},
		{"/x", "Location: /v1/x", "/x"},
		// Browsers ignore a Path that is too long, or whose name has an unusual
		// space.
		{"/plain", "Set-Cookie: a=1; Path=/plain/" + strings.Repeat("x", 1100), "a=1; Path=/plain"},
		{"/plain", "Set-Cookie: a=1; \u00a0Path=/plain", "a=1; \u00a0Path=/plain; Path=/plain"},
	} {
		u.respond("HTTP/1.1 200 OK\nContent-Length: 0\n" + test.sent + "\n\n")
		name, _, _ := strings.Cut(test.sent, ":")
		if got := a.browser().Fetch("GET", test.ask).Header.Values(name); len(got) != 1 || got[0] != test.want {
			t.Errorf("%s, %.60s: got %.80q, want %q", test.ask, test.sent, got, test.want)
		}
	}
}
