package config

import (
	"crypto/rand"
	"encoding/base64"
	"log/slog"
	"slices"
	"strings"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
	"github.com/cloakroom-bff/cloakroom/web"
)

// Validate returns the mistakes in c that serve reports at start, except for
// those of server.tls. It reads the files that c names. It connects to nothing
// and creates no file. The error is an Errors.
func (c *Config) Validate(log *slog.Logger) error {
	copied := *c
	if len(copied.Session.Keys) == 0 && copied.Store.IsInMemory() { // serve generates one
		key := make([]byte, 32)
		rand.Read(key)
		copied.Session.Keys = []session.Secret{session.Secret(base64.StdEncoding.EncodeToString(key))}
	}
	_, err := copied.NewServer(Parts{Store: new(tokenstore.Memory), Log: log})
	return Join(c.validateStore(log), err)
}

// validateStore is OpenStore without the store.
func (c *Config) validateStore(log *slog.Logger) error {
	if _, isFile := c.Store.FileDir(); isFile {
		var problems Errors
		c.Store.checkLocal(&problems)
		c.Store.checkFileDir(&problems)
		return problems.orNil()
	}
	store, err := c.OpenStore(log)
	if err != nil {
		return err
	}
	return store.Close()
}

// NewProvider returns the OpenID client that c describes, and the mistakes in
// c. With mistakes, the client can be used for discovery only. The only I/O is
// to read the files that c names.
func (c *Config) NewProvider(log *slog.Logger) (*oidc.Client, Errors) {
	var problems Errors
	cfg := c.provider(&problems)
	cfg.Logger = log
	cfg.RedirectURI = c.RedirectURI()
	cfg.WithoutLogin = c.WithoutLogin()
	for _, r := range c.Routes {
		t := oidc.Target{Resource: r.Resource, Audience: r.Audience, Scopes: r.Scopes,
			Exchange: r.Grant == "token-exchange"}
		if r.usesSession() && t.Key() != "" {
			cfg.Targets = append(cfg.Targets, t)
		}
	}
	client, err := oidc.New(cfg)
	problems = append(problems, fieldErrors(configerr.In("Provider", err), serverKey)...)
	if len(problems) > 0 {
		return client, problems.withValues(c)
	}
	return client, nil
}

// WithoutLogin reports whether no route uses a session, but some the broker's
// own token: then there are no logins.
func (c *Config) WithoutLogin() bool {
	usesClient := func(r Route) bool { return r.Token == "client" || r.Token == "user-or-client" }
	return slices.ContainsFunc(c.Routes, usesClient) && !slices.ContainsFunc(c.Routes, Route.usesSession)
}

// usesSession reports whether requests to the route get the user's token.
func (r Route) usesSession() bool {
	return r.Token == "user" || r.Token == "optional" || r.Token == "user-or-client"
}

// RedirectURI returns the redirect URI to register at the provider.
func (c *Config) RedirectURI() string { return c.Endpoint("/callback") }

// Endpoint returns the URL of an endpoint for the browser. path begins with a
// slash.
func (c *Config) Endpoint(path string) string {
	return strings.TrimSuffix(c.Server.PublicURL, "/") + c.Server.Prefix + path
}

// NewFrontend returns the handler of the app's files; nil without an app.
// The error is an Errors.
func (c *Config) NewFrontend(log *slog.Logger) (*web.Handler, error) {
	handler, err := c.frontend(nil, log)
	if err != nil {
		return nil, fieldErrors(err, frontendKey)
	}
	return handler, nil
}
