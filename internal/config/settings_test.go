package config

import (
	"fmt"
	"maps"
	"strings"
	"testing"
)

// settingsOf returns the settings of a file.
func settingsOf(t *testing.T, text string) map[string]string {
	t.Helper()
	cfg, err := Load(writeFile(t, "cloakroom.yaml", text), func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	settings := make(map[string]string)
	for key, value := range cfg.Settings() {
		settings[key] = value.Reveal()
	}
	return settings
}

const settingsBase = "oidc: {issuer: https://a, client_id: a, client_secret: hunter2, ca_file: /a}\n" +
	"server: {listen: 127.0.0.1:1, admin_listen: 127.0.0.1:2, public_url: https://a}\n" +
	"frontend: {dir: /a}\n" +
	"store: {url: 'redis://:a@localhost', prefix: 'a:'}\n" +
	"session: {idle_timeout: 20m, claims: {map: {a: x.y, b: z}}}\n" +
	"routes: [{path: /api/, upstream: http://localhost:3, upstream_tls: {ca_file: /a}, require: {max_age: 5m}}]\n"

func TestSettingsAreWhatReplicasHaveInCommon(t *testing.T) {
	t.Parallel()
	base := settingsOf(t, settingsBase)
	for _, key := range []string{"server.listen", "server.admin_listen", "server.public_url", "oidc.issuer",
		"oidc.client_id", "oidc.ca_file", "store.url", "store.prefix", "session.keys", "frontend.dir"} {
		if _, ok := base[key]; ok {
			t.Errorf("settings: got %s, want none", key)
		}
	}
	for name, test := range map[string]struct{ old, new, want string }{
		"paths":        {"/a}", "/b}", ""},
		"listeners":    {"127.0.0.1:", "127.0.0.1:1", ""},
		"store":        {":a@", ":b@", ""},
		"order of map": {"a: x.y, b: z", "b: z, a: x.y", ""},
		"default":      {"routes:", "#", "routes"},
		"secret":       {"hunter2", "hunter3", "oidc.client_secret"},
		"duration":     {"20m", "21m", "session.idle_timeout"},
		"map":          {"x.y", "x.z", "session.claims.map"},
		"upstream":     {"localhost:3", "localhost:4", "routes"},
		"in a route":   {"max_age: 5m", "max_age: 6m", "routes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(settingsBase, test.old) {
				t.Fatalf("the file lacks %q", test.old)
			}
			changed := settingsOf(t, strings.ReplaceAll(settingsBase, test.old, test.new))
			var got []string
			for key := range maps.Keys(base) {
				if changed[key] != base[key] {
					got = append(got, key)
				}
			}
			if len(changed) > len(base) {
				t.Errorf("keys: got %d, want %d at most", len(changed), len(base))
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("settings that changed: got %q, want %q", got, test.want)
			}
		})
	}
}

func TestSettingsDoNotPrintSecrets(t *testing.T) {
	t.Parallel()
	cfg, err := Load(writeFile(t, "cloakroom.yaml", settingsBase), func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(cfg.Settings()); strings.Contains(text, "hunter2") {
		t.Errorf("settings print a secret: %s", text)
	}
}
