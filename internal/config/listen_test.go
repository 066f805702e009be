package config

import (
	"strings"
	"testing"
)

// serve could not start.
func TestListenersNeedAddressesOfTheirOwn(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		listen, admin string
		conflict      bool
	}{
		{"127.0.0.1:8080", "127.0.0.1:8080", true},
		{"localhost:8080", "127.0.0.1:8080", true},
		{":8080", "127.0.0.1:8080", true},
		{"127.0.0.1:8080", "0.0.0.0:8080", true},
		{"[::]:8080", "127.0.0.1:8080", true},
		{"[::1]:8080", "0.0.0.0:8080", false},
		{"127.0.0.1:8080", "127.0.0.2:8080", false},
		{":8080", ":9090", false},
		{"127.0.0.1:0", "127.0.0.1:0", false}, // two ports that are free
	} {
		err := build(mustLoad(t, `
server: {public_url: "http://localhost:8080", admin_token: `+strings.Repeat("a1B", 10)+`, listen: "`+test.listen+
			`", admin_listen: "`+test.admin+`"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s}
`, nil))
		const want = "is also the address of server.listen"
		if got := err != nil && strings.Contains(err.Error(), want); got != test.conflict {
			t.Errorf("%s and %s: got %v, want a conflict: %v", test.listen, test.admin, err, test.conflict)
		}
	}
}

// A name from a file often has a line break at its end.
func TestClientIDHasNoSpaceAround(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{
		"spa\n":     `CLIENT_ID "spa\n" has white space around it`,
		" spa":      `CLIENT_ID " spa" has white space around it`,
		"spa\x00":   `CLIENT_ID "spa\x00" has white space around it, or a control character`,
		"my spa/ü@": "",
	} {
		err := build(mustLoad(t, `
server: {public_url: "http://localhost:8080"}
oidc: {issuer: "https://id.example.com", client_secret: s}
`, map[string]string{"CLOAKROOM_OIDC_CLIENT_ID": id}))
		want = strings.Replace(want, "CLIENT_ID", "oidc.client_id:", 1)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", id, err, want)
		}
	}
}
