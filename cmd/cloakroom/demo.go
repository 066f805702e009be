package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/devtools"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
	"github.com/cloakroom-bff/cloakroom/internal/sampleapi"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/web"
)

func demoCommand(getenv func(string) string) *cobra.Command {
	var d demo
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run a provider, an API and an app in one process",
		Long: `Run the broker, a development identity provider (users alice and bob, no
passwords), a sample API that verifies JWTs, a sample app and an in-memory store
in one process. It prints the URL to open. Clients sign in without a password,
so it listens on the loopback interface only.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return d.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	c.Flags().StringVar(&d.listen, "listen", demoListen, "loopback `ADDRESS` to listen on")
	c.Flags().DurationVar(&d.accessTokenTTL, "access-token-ttl", time.Minute, "lifetime of access tokens")
	c.Flags().StringVar((*string)(&d.store), "store", "memory:",
		"`URL` of the session store, such as redis://localhost:6379")
	c.AddCommand(demoTokenCommand())
	return c
}

const demoListen = "127.0.0.1:8080"

// demo runs the whole system in one process. Its broker is that of serve, with
// a fixed configuration.
type demo struct {
	listen         string
	accessTokenTTL time.Duration
	store          session.Secret

	tools *devtools.Tools // set by run
}

func (d *demo) run(ctx context.Context, stdout, stderr io.Writer) error {
	if d.accessTokenTTL < time.Second {
		return usageError{fmt.Errorf("--access-token-ttl: %v is shorter than a second", d.accessTokenTTL)}
	}
	public, err := listenLoopback("--listen", d.listen)
	if err != nil {
		return err
	}
	defer public.Close()
	idp, err := listenLoopback("provider", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer idp.Close()
	api, err := listenLoopback("sample API", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer api.Close()

	// The app is on localhost and the provider on 127.0.0.1. For the browser
	// these are two sites, as in production, and neither gets cookies of the
	// other.
	_, port, _ := net.SplitHostPort(public.Addr().String())
	app := "http://localhost:" + port
	issuer := "http://" + idp.Addr().String()
	secret := rand.Text()
	signal.Ignore(syscall.SIGPIPE)
	d.tools = devtools.New(devtools.Config{
		Issuer: issuer, Audience: "api", Prefix: "/bff",
		Routes: []devtools.Route{
			{Path: "/api/", Upstream: "the sample API", Token: "user"},
			{Path: "/public/", Upstream: "the sample API", Token: "none"},
		},
	})
	log, stop := newDevLogger(stderr, d.tools)
	defer stop()
	provider, err := d.newProvider(issuer, app, secret, log)
	if err != nil {
		return err
	}
	d.tools.UseProvider(provider)
	samples, err := sampleapi.New(sampleapi.Config{Issuer: issuer, Audience: "api", Logger: log})
	if err != nil {
		return err
	}

	b, err := d.newBroker(issuer, app, secret, "http://"+api.Addr().String(), log)
	if err != nil {
		return err
	}
	defer b.close()
	behind := map[net.Listener]http.Handler{idp: provider, api: samples}
	return serveDev(ctx, b, public, behind, log, func() error {
		_, err := fmt.Fprintf(stdout, "Open %s and sign in as alice or bob. No password is needed.\n"+
			"Access tokens expire after %v and are refreshed automatically.\n"+
			"The inspector is at /bff/dev. Press Ctrl-C to stop. Nothing is saved.\n", app, d.accessTokenTTL)
		return err
	})
}

// newDevLogger returns the logger of a program for developers: warnings go to
// stderr as text, and requests to tools. stop writes what is buffered.
func newDevLogger(stderr io.Writer, tools *devtools.Tools) (log *slog.Logger, stop func()) {
	return newLogger(stderr, func(w io.Writer) slog.Handler {
		return tools.LogHandler(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
	})
}

// serveDev runs a broker, and serves what is behind it, until ctx ends. What is
// behind it ends after the broker, which revokes tokens at its end. greet is
// called when the broker has found its provider.
func serveDev(
	ctx context.Context, b *broker, public net.Listener, behind map[net.Listener]http.Handler,
	log *slog.Logger, greet func() error,
) error {
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	group, ctx := errgroup.WithContext(ctx)
	for listener, handler := range behind {
		group.Go(func() error { return serveUntil(serving, newHTTPServer(handler, log), listener) })
	}
	group.Go(func() error {
		defer stopServing()
		return b.run(ctx, public, nil)
	})
	group.Go(func() error {
		if b.server.WaitForProvider(ctx) != nil {
			return nil // another goroutine returns the reason
		}
		return greet()
	})
	return group.Wait()
}

// newProvider returns the development provider, with the app's origin as a
// client.
func (d *demo) newProvider(issuer, app, secret string, log *slog.Logger) (*devidp.Provider, error) {
	return devidp.New(devidp.Config{
		Issuer:         issuer,
		Users:          devidp.DefaultUsers(),
		AccessTokenTTL: d.accessTokenTTL,
		Logger:         log,
		Clients: []devidp.Client{{
			ID:                     "demo",
			Secret:                 secret,
			RedirectURIs:           []string{app + "/bff/callback"},
			PostLogoutRedirectURIs: []string{app + "/bff/logout/callback"},
			Scopes:                 demoScopes,
		}, demoCLI},
	})
}

// newBroker returns the broker of the demo.
func (d *demo) newBroker(issuer, app, secret, api string, log *slog.Logger) (*broker, error) {
	cfg := &config.Config{
		Server: config.Server{
			PublicURL: app, AdminListen: "127.0.0.1:0",
			// Ctrl-C must end the process soon, also with idle connections.
			ShutdownGrace: time.Second,
		},
		OIDC: config.OIDC{
			Issuer: issuer, ClientID: "demo", ClientSecret: session.Secret(secret), Scopes: demoScopes,
		},
		Store: config.Store{URL: d.store},
		// A new key for each run: the provider's tokens are lost at the end
		// too.
		Session: config.Session{Keys: []session.Secret{newKey()}},
		Routes: []config.Route{
			{Path: "/api/", Upstream: []string{api}, Token: "user",
				AcceptBearer: &config.AcceptBearer{Audience: "api", Scopes: []string{"orders:read"}}},
			{Path: "/public/", Upstream: []string{api}, Token: "none"},
		},
		Frontend: config.Frontend{CSP: map[string][]string{"report-uri": {"/bff" + devtools.ReportPath}}},
	}
	cfg.SetDefaults()
	b, err := newBroker(cfg, extras{app: web.Demo(), tools: d.tools}, log)
	if problems, ok := errors.AsType[config.Errors](err); ok {
		for _, problem := range problems {
			if problem.Key == "store.url" {
				problem.Key = "--store"
			}
		}
	}
	return b, err
}

var demoScopes = []string{"openid", "profile", "email", "offline_access", "orders:read"}

func listenLoopback(name, addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %q is not an address such as 127.0.0.1:8080", name, addr)}
	}
	if !loopback.IsHost(host) {
		return nil, usageError{fmt.Errorf(
			"%s: %q is not on the loopback interface; the demo has no passwords", name, addr)}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return l, nil
}

// serveUntil serves until ctx ends, and then closes all connections.
func serveUntil(ctx context.Context, s *http.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	return serve(s, l)
}
