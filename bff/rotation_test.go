package bff_test

import (
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func TestMissingRotationIsLoggedOnce(t *testing.T) {
	t.Parallel()
	for _, keeps := range []bool{false, true} {
		a := newApp(t, nil)
		a.provider.SetHooks(devidp.Hooks{KeepRefreshTokens: keeps})
		b := a.signedIn()
		for range 2 {
			if got := b.Fetch("POST", "/bff/session/refresh").StatusCode; got != 200 {
				t.Fatalf("refresh: got %d, want 200", got)
			}
		}
		want := 0
		if keeps {
			want = 1
		}
		const line = "provider did not rotate the refresh token"
		if got := strings.Count(a.logs.String(), line); got != want {
			t.Errorf("provider keeps refresh tokens %t: got %d lines, want %d:\n%s", keeps, got, want, a.logs)
		}
	}
}
