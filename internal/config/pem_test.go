package config

import (
	"log/slog"
	"strings"
	"testing"
)

// Each file that cannot be read is a mistake of its own.
func TestUnreadableFilesAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	const files = "{ca_file: /nowhere/ca, cert_file: /nowhere/crt, key_file: /nowhere/key}"
	c := mustLoad(t, `
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_secret: s3cret}
store: {url: "rediss://redis", ca_file: /nowhere/ca, cert_file: /nowhere/crt, key_file: /nowhere/key}
session: {keys: [`+goodKey+`]}
routes: [{path: /api/, upstream: "https://api", token: user, upstream_tls: `+files+`}]
`, nil)
	text := "\n" + c.Validate(slog.New(slog.DiscardHandler)).Error()
	for _, section := range []string{"store.", "routes[0].upstream_tls."} {
		for _, key := range []string{"ca_file", "cert_file", "key_file"} {
			if n := strings.Count(text, "\n"+section+key+": "); n != 1 {
				t.Errorf("%s%s: %d lines, want 1:%s", section, key, n, text)
			}
		}
	}
}

func TestClientKeyAndCertificateAreReportedAtOnce(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]string{
		"":             "oidc.client_key: missing",
		"junk":         "oidc.client_key: [redacted] does not consist",
		"/nowhere/key": "oidc.client_key_file: open /nowhere/key",
	} {
		source := "client_key: " + key
		if key == "/nowhere/key" {
			source = "client_key_file: " + key
		}
		c, unread := load(t, `
server: {public_url: "https://app.example.com"}
oidc: {issuer: "https://id.example.com", client_id: spa, client_auth: private_key_jwt, client_cert_file: /nowhere/crt,
  `+source+`}
`, nil)
		text := Merge(unread, c.Validate(slog.New(slog.DiscardHandler))).Error()
		for _, line := range []string{want, "oidc.client_cert_file: open /nowhere/crt"} {
			if strings.Count(text, line) != 1 {
				t.Errorf("%s: got\n%s\nwant %q once", source, text, line)
			}
		}
	}
}
