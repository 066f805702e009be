package config

import (
	"strings"
	"testing"
	"time"
)

func none(string) string { return "" }

// A command that finds a broker must not be busy for minutes with a file that
// is no configuration.
func TestAdminAddressOfALongBrokenFile(t *testing.T) {
	t.Parallel()
	const server, lines = "server: {admin_listen: '127.0.0.1:9191'}\n", 20000
	for name, text := range map[string]string{
		"tabs at the end":            server + strings.Repeat("x: y\n", lines) + strings.Repeat("\tx: [\n", lines),
		"a quote that is not closed": server + "x: \"\n" + strings.Repeat("x: y\n", lines),
	} {
		found := make(chan string, 1)
		go func() { // until LoadAdmin returns; at the latest, at the end of the tests
			listen, _ := LoadAdmin(writeFile(t, "cloakroom.yaml", text), none)
			found <- listen
		}()
		select {
		case got := <-found:
			if got != "127.0.0.1:9191" {
				t.Errorf("%s: got %q, want 127.0.0.1:9191", name, got)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: LoadAdmin does not return", name)
		}
	}
}

func TestTabsAreNamed(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"oidc:\n\tissuer: x\n":              "line 2 is indented with a tab: use spaces",
		"oidc:\n  issuer: x\n  \tscopes:\n": "line 3 is indented with a tab: use spaces",
	} {
		c, err := Load(writeFile(t, "cloakroom.yaml", text), none)
		if c != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}
