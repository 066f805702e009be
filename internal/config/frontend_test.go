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
