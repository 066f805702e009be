package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
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
password), a sample API that verifies JWTs, a sample app and an in-memory store in
one process. It prints one URL to open. It has no authentication, so it listens on
the loopback interface only.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return d.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	c.Flags().StringVar(&d.listen, "listen", demoListen, "loopback `ADDRESS` to listen on")
	c.Flags().DurationVar(&d.accessTokenTTL, "access-token-ttl", time.Minute, "how long access tokens live")
	c.Flags().StringVar((*string)(&d.store), "store", "memory:", "`URL` of the session store, redis://… to look into one while the demo runs")
	c.AddCommand(demoTokenCommand())
	return c
}

const demoListen = "127.0.0.1:8080"

// demo is the whole system in one process. Its broker is the one that serve runs, with a configuration of its own.
type demo struct {
	listen         string
	accessTokenTTL time.Duration
	store          session.Secret
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

	// The app is on localhost and the provider on 127.0.0.1: two sites to a browser, as in real life, so no cookie of one reaches the other.
	_, port, _ := net.SplitHostPort(public.Addr().String())
	app := "http://localhost:" + port
	issuer := "http://" + idp.Addr().String()
	secret := rand.Text()
	signal.Ignore(syscall.SIGPIPE)
	log, stop := newLogger(stderr, func(w io.Writer) slog.Handler {
		return slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn})
	})
	defer stop()

	provider, err := devidp.New(devidp.Config{
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
	if err != nil {
		return err
	}
	samples, err := sampleapi.New(sampleapi.Config{Issuer: issuer, Audience: "api", Logger: log})
	if err != nil {
		return err
	}

	cfg := &config.Config{
		Server:  config.Server{PublicURL: app, AdminListen: "127.0.0.1:0"},
		OIDC:    config.OIDC{Issuer: issuer, ClientID: "demo", ClientSecret: session.Secret(secret), Scopes: demoScopes},
		Store:   config.Store{URL: d.store},
		Session: config.Session{Keys: []session.Secret{newKey()}}, // the provider forgets its users' tokens at the end, so no session need outlive it
		Routes: []config.Route{
			{Path: "/api/", Upstream: []string{"http://" + api.Addr().String()}, Token: "user", AcceptBearer: &config.AcceptBearer{Audience: "api", Scopes: []string{"orders:read"}}},
			{Path: "/public/", Upstream: []string{"http://" + api.Addr().String()}, Token: "none"},
		},
	}
	cfg.SetDefaults()
	b, err := newBroker(cfg, web.Demo(), log)
	if err != nil {
		return err
	}
	defer b.close()

	// What is behind the broker outlives it: at its end it may still have tokens to revoke.
	behind, stopBehind := context.WithCancel(context.WithoutCancel(ctx))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveUntil(behind, newHTTPServer(provider, log), idp) })
	group.Go(func() error { return serveUntil(behind, newHTTPServer(samples, log), api) })
	group.Go(func() error {
		defer stopBehind()
		return b.run(ctx, public, nil)
	})
	group.Go(func() error {
		if b.server.WaitForProvider(ctx) != nil {
			return nil // what ended the demo before it began is another's to say
		}
		_, err := fmt.Fprintf(stdout, "Open %s and sign in as alice or bob. No password is asked for.\n"+
			"Access tokens live %v and are refreshed unseen. Ctrl-C ends the demo; nothing is kept.\n", app, d.accessTokenTTL)
		return err
	})
	return group.Wait()
}

var demoScopes = []string{"openid", "profile", "email", "offline_access", "orders:read"}

func listenLoopback(name, addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %q is not an address such as 127.0.0.1:8080", name, addr)}
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return nil, usageError{fmt.Errorf("%s: %q is not on the loopback interface, and the demo signs in whoever asks", name, addr)}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return l, nil
}

// serveUntil serves until ctx ends, and then drops what is still open.
func serveUntil(ctx context.Context, s *http.Server, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	return serve(s, l)
}
