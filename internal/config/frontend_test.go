package config

import (
	"strings"
	"testing"
)

func TestFrontendURLAndItsMistakes(t *testing.T) {
	t.Parallel()
	const base = "server: {public_url: 'http://localhost:8080'}\n" +
		"oidc: {issuer: 'http://localhost:9', client_id: app, client_secret: secret}\n"
	for text, want := range map[string]string{
		"url: http://localhost:5173":                     "",
		"url: https://cdn.example.com/app":               "",
		"url: http://cdn.example.com":                    "frontend.url: ",
		"url: localhost:5173":                            "frontend.url: ",
		"url: http://localhost:99999":                    "frontend.url: ",
		"url: https://cdn.example.com:0/app":             "frontend.url: ",
		"url: https://cdn.example.com/app//v1":           "frontend.url: ",
		"url: https://cdn.example.com/../v1":             "frontend.url: ",
		"url: http://localhost:5173/%2e%2e/v1":           "frontend.url: ",
		"url: https://cdn.example.com/app/index.html":    "frontend.url: ",
		"url: https://cdn.example.com/app/":              "",
		"{url: http://localhost:5173, dir: " + "." + "}": "frontend.url: ",
	} {
		err := build(mustLoad(t, base+"frontend:\n  "+text+"\n", nil))
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: got %v, want no mistake", text, err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)):
			t.Errorf("%s: got %v, want a mistake of %s", text, err, want)
		case want != "" && strings.Count(err.Error(), want) != 1:
			t.Errorf("%s: got %v, want one mistake", text, err)
		}
	}
}

// The broker would send itself the requests for files, without end.
func TestFrontendURLIsNotTheBrokerItself(t *testing.T) {
	t.Parallel()
	for url, wrong := range map[string]bool{
		"https://app.example.com": true, "https://APP.example.com:443/files": true,
		"https://app.example.com:8443": false, "https://cdn.example.com": false,
	} {
		err := build(mustLoad(t, frontendBase+"frontend: {url: '"+url+"'}\n", nil))
		if got := err != nil && strings.HasPrefix(err.Error(), "frontend.url: "); got != wrong {
			t.Errorf("%s: got %v, want a mistake: %v", url, err, wrong)
		}
	}
}
