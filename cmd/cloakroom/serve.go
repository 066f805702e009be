package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
	"github.com/cloakroom-bff/cloakroom/web"
)

func serveCommand(getenv func(string) string) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the broker",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file, getenv)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewJSONHandler(c.ErrOrStderr(), nil))
			b, err := newBroker(cfg, nil, log)
			if err != nil {
				return err
			}
			defer b.close()
			log.Info("configuration", "in_force", cfg.logValue())
			if cfg.Store.URL == "memory:" {
				log.Warn("store.url is memory: (the default): sessions are lost at restart, and a second replica would not know them; use redis://… in production")
			}
			public, err := net.Listen("tcp", cfg.Server.Listen)
			if err != nil {
				return fmt.Errorf("server.listen: %w", err)
			}
			return b.run(c.Context(), public)
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration `FILE` (YAML); every key can also be set by the environment")
	return c
}

// store is what the broker needs of a token store beyond session.Store.
type store interface {
	session.Store
	io.Closer
}

// broker is a bff.Server with all it needs, ready to listen.
type broker struct {
	cfg    *config
	log    *slog.Logger
	store  store
	server *bff.Server
	public *http.Server
	admin  *http.Server
}

// newBroker puts the parts together. It does no I/O but to look at the app's files, which are app, or those in frontend.dir where that is
// nil. The error is a *configError with every mistake in cfg.
func newBroker(cfg *config, app fs.FS, log *slog.Logger) (*broker, error) {
	var mistakes []string
	collect := func(more []string) { mistakes = append(mistakes, more...) }

	proxies, wrong := cfg.trustedProxies()
	collect(wrong)
	collect(cfg.checkListeners())
	sameSite, ok := map[string]http.SameSite{"": http.SameSiteStrictMode, "strict": http.SameSiteStrictMode, "lax": http.SameSiteLaxMode}[cfg.Session.Cookie.SameSite]
	if !ok {
		collect([]string{fmt.Sprintf("session.cookie.same_site: %q is neither strict nor lax", cfg.Session.Cookie.SameSite)})
	}
	store, err := openStore(cfg, log)
	if err != nil {
		collect([]string{err.Error()})
		store = new(tokenstore.Memory) // what follows is for the other mistakes
	}
	if len(cfg.Session.Keys) == 0 && cfg.Store.URL == "memory:" {
		cfg.Session.Keys = []session.Secret{newKey()} // the sessions it seals live no longer than this process either
	}
	keys, wrong := cfg.sessionKeys()
	collect(wrong)
	frontend, err := newFrontend(cfg, app, log)
	if err != nil {
		collect([]string{"frontend.dir: " + err.Error()})
	}
	var routes []bff.Route
	for _, r := range cfg.Routes {
		routes = append(routes, bff.Route{Path: r.Path, Upstream: r.Upstream, Token: r.Token, CSRF: r.CSRF})
	}
	if len(keys) == 0 && len(cfg.Session.Keys) > 0 {
		keys = [][]byte{make([]byte, 32)} // every one is wrong, as has been said
	}
	server, err := bff.New(bff.Config{
		PublicURL:      cfg.Server.PublicURL,
		Prefix:         cfg.Server.Prefix,
		TrustedProxies: proxies,
		Provider: bff.ProviderConfig{
			Issuer:       cfg.OIDC.Issuer,
			ClientID:     cfg.OIDC.ClientID,
			ClientSecret: cfg.OIDC.ClientSecret,
			ClientAuth:   cfg.OIDC.ClientAuth,
			Scopes:       cfg.OIDC.Scopes,
		},
		Sessions: session.Config{
			Store:        store,
			Keys:         keys,
			IdleTimeout:  cfg.Session.IdleTimeout,
			MaxLifetime:  cfg.Session.MaxLifetime,
			RefreshAhead: cfg.Session.RefreshAhead,
			Cookie:       session.Cookie{SameSite: sameSite},
		},
		Routes:   routes,
		Frontend: frontend,
		Client:   web.Client(),
		Logger:   log,
	})
	if err != nil {
		collect(explain(err))
	}
	if len(mistakes) > 0 {
		return nil, &configError{mistakes}
	}
	b := &broker{cfg: cfg, log: log, store: store, server: server}
	b.public = newHTTPServer(server, log)
	b.admin = newHTTPServer(server.Admin(), log)
	return b, nil
}

func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second, // there is none for bodies and answers: uploads and streams take as long as they take
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

func openStore(cfg *config, log *slog.Logger) (store, error) {
	scheme, _, _ := strings.Cut(cfg.Store.URL.Reveal(), ":")
	switch scheme {
	case "memory":
		return new(tokenstore.Memory), nil
	case "redis", "rediss":
		s, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: cfg.Store.URL.Reveal(), Prefix: cfg.Store.Prefix, Logger: log})
		if err != nil {
			return nil, fmt.Errorf("store.url: %w", err)
		}
		return s, nil
	}
	return nil, errors.New("store.url: its scheme is none of memory, redis, rediss")
}

func newFrontend(cfg *config, app fs.FS, log *slog.Logger) (http.Handler, error) {
	if cfg.Frontend.Dir == "" && app == nil {
		return nil, nil
	}
	var formAction []string
	if u, err := url.Parse(cfg.OIDC.Issuer); err == nil && u.Host != "" {
		formAction = []string{u.Scheme + "://" + u.Host} // a logout form is redirected there
	}
	return web.New(web.Config{
		Dir: cfg.Frontend.Dir, FS: app, FormAction: formAction,
		HTTPS: strings.HasPrefix(cfg.Server.PublicURL, "https:"), Logger: log,
	})
}

// run serves until ctx ends, on public and on the admin listener, then shuts down: no new connections, what is under way
// finishes, and no rotated token is lost. It closes public.
func (b *broker) run(ctx context.Context, public net.Listener) error {
	defer public.Close()
	if files := b.cfg.Server.TLS; files.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
		if err != nil {
			return fmt.Errorf("server.tls: %w", err)
		}
		public = tls.NewListener(public, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}})
	}
	admin, err := net.Listen("tcp", b.cfg.Server.AdminListen)
	if err != nil {
		return fmt.Errorf("server.admin_listen: %w", err)
	}
	b.log.Info("listening", "listen", public.Addr().String(), "admin_listen", admin.Addr().String(), "public_url", b.cfg.Server.PublicURL)

	group, serving := errgroup.WithContext(ctx)
	discovering, stopDiscovering := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error { return serve(b.public, public) })
	group.Go(func() error { return serve(b.admin, admin) })
	group.Go(func() error { // until the last request is answered
		b.server.Discover(discovering)
		return nil
	})
	group.Go(func() error {
		defer stopDiscovering()
		<-serving.Done() // a signal, or a listener that failed
		b.log.Info("shutting down", "grace", b.cfg.Server.ShutdownGrace.String())
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.cfg.Server.ShutdownGrace)
		defer cancel()
		defer b.admin.Close()
		if err := b.public.Shutdown(grace); err != nil {
			b.log.Warn("requests still open after the grace period are cut", "err", err)
			b.public.Close()
		}
		return b.server.Drain(grace)
	})
	return group.Wait()
}

func serve(s *http.Server, l net.Listener) error {
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

func (b *broker) close() {
	if err := b.store.Close(); err != nil {
		b.log.Warn("close store", "err", err)
	}
}
