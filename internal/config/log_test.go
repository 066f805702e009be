package config

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

func TestLogSettings(t *testing.T) {
	t.Parallel()
	load := func(variables ...string) (*Config, error) {
		env := map[string]string{
			"CLOAKROOM_SERVER_PUBLIC_URL": "http://localhost:8080", "CLOAKROOM_OIDC_ISSUER": "https://id.example.com",
			"CLOAKROOM_OIDC_CLIENT_ID": "spa", "CLOAKROOM_OIDC_CLIENT_SECRET": "secret",
		}
		for _, v := range variables {
			name, value, _ := strings.Cut(v, "=")
			env["CLOAKROOM_LOG_"+name] = value
		}
		cfg, err := Load("", func(name string) string { return env[name] })
		if err != nil {
			return nil, err
		}
		cfg.Session.Keys = []session.Secret{"3tX7Xx4CfgNcVq5ZsJb1gJ0Ue1r4l0c6d2m1v3y9k7Q="}
		_, err = cfg.NewServer(Parts{Store: new(tokenstore.Memory), Log: slog.New(slog.DiscardHandler)})
		return cfg, err
	}
	cfg, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if want := (Log{Level: "info", Format: "json", Access: "all",
		Users: "hash"}); fmt.Sprint(cfg.Log) != fmt.Sprint(want) {
		t.Errorf("the defaults: got %v, want %v", cfg.Log, want)
	}
	for text, want := range map[string]slog.Level{
		"error": slog.LevelError, "warn": slog.LevelWarn, "info": slog.LevelInfo, "debug": slog.LevelDebug,
	} {
		cfg, err := load("LEVEL=" + text)
		if err != nil {
			t.Errorf("level %s: %v", text, err)
		} else if got := cfg.Log.MinLevel(); got != want {
			t.Errorf("level %s: got %v, want %v", text, got, want)
		}
	}
	cfg, err = load("EXCLUDE=[/assets/, /favicon.ico]", "ACCESS=errors", "USERS=none", "FORMAT=text")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/assets/", "/favicon.ico"}; !slices.Equal(cfg.Log.Exclude, want) {
		t.Errorf("log.exclude: got %q, want %q", cfg.Log.Exclude, want)
	}
	for _, mistake := range []string{
		"LEVEL=INFO", "LEVEL=trace", "FORMAT=logfmt", "ACCESS=warn", "EXCLUDE=[assets/]", "EXCLUDE=['']", "USERS=sub",
	} {
		name, _, _ := strings.Cut(strings.ToLower(mistake), "=")
		if _, err := load(mistake); !strings.HasPrefix(fmt.Sprint(err), "log."+name) {
			t.Errorf("%s: got %v, want a mistake of log.%s", mistake, err, name)
		}
	}
}
