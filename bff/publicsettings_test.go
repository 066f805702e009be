package bff_test

import (
	"encoding/json"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
)

func TestPublicSettingsAreForEverybody(t *testing.T) {
	t.Parallel()
	for want, settings := range map[string]json.RawMessage{
		"{}": nil, `{"beta":true}`: json.RawMessage(`{"beta":true}`),
	} {
		a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.PublicSettings = settings })
		resp := a.browser().Do("GET", "/bff/config.json", "")
		if resp.StatusCode != 200 || resp.Text != want {
			t.Errorf("got status %d and %s, want 200 and %s", resp.StatusCode, resp.Text, want)
		}
		for name, want := range map[string]string{
			"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
			"Access-Control-Allow-Origin": "", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
		if resp := a.browser().Do("HEAD", "/bff/config.json", ""); resp.StatusCode != 200 {
			t.Errorf("HEAD: got status %d, want 200", resp.StatusCode)
		}
		wantProblem(t, a.browser().Do("POST", "/bff/config.json", "", "X-CSRF", "1"), 405, "method_not_allowed")
	}
}
