package config

import "testing"

func TestAppHasTheOriginOfItsServer(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://app.example.com":       "https://app.example.com",
		"https://app.example.com/":      "https://app.example.com",
		"https://APP.example.com:443":   "https://app.example.com",
		"HTTPS://app.example.com/shop":  "https://app.example.com/shop",
		"https://app.example.com/Shop/": "https://app.example.com/Shop",
		"http://localhost:8080":         "http://localhost:8080",
		"http://localhost:80":           "http://localhost",
		"https://[2001:DB8::1]:443/a":   "https://[2001:db8::1]/a",
		"app.example.com":               "app.example.com", // a mistake, which is reported elsewhere
	} {
		c := new(Config)
		c.Server.PublicURL = raw
		if got := c.App().Origin; got != want {
			t.Errorf("%s: got %s, want %s", raw, got, want)
		}
	}
}
