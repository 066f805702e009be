package bff_test

import (
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// A caller's token may have its scope in an array, as IdentityServer writes it.
func TestCallerTokenMayHaveScopeAsArray(t *testing.T) {
	t.Parallel()
	a := newGateway(t, nil)
	for _, test := range []struct {
		scope  any
		status int
	}{
		{[]string{"orders:read", "x"}, 200},
		{[]string{"x", "orders:read"}, 200},
		{[]string{"orders:readx"}, 403},
		{[]string{}, 403},
		{[]any{"orders:read", 7}, 401},
		{7, 401},
	} {
		a.recordCalls(devidp.Hooks{EditAccessToken: func(_, claims map[string]any) {
			claims["aud"], claims["scope"], claims["auth_time"] = "api", test.scope, "2026-01-01T00:00:00Z"
		}})
		resp := a.browser().Do("GET", "/orders/x", "", "Authorization", "Bearer "+a.machineToken("orders:read", ""))
		if resp.StatusCode != test.status {
			t.Errorf("%v: got %d %s, want %d", test.scope, resp.StatusCode,
				resp.Header.Get("WWW-Authenticate"), test.status)
		}
	}
}
