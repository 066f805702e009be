package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// broker is a bff.Server with all it needs, ready to listen.
type broker struct {
	cfg   *config.Config
	app   fs.FS
	log   *slog.Logger
	store config.TokenStore
	cert  *certificate // nil: without TLS

	server *bff.Server
}

// newBroker makes the parts that cfg describes. Its frontend is app, or
// frontend.dir if app is nil. newBroker does no I/O but to read the files that cfg
// names. The error is a config.Errors.
func newBroker(cfg *config.Config, app fs.FS, log *slog.Logger) (*broker, error) {
	b := &broker{cfg: cfg, app: app, log: log}
	store, storeErr := cfg.OpenStore(log)
	if storeErr != nil {
		store = new(tokenstore.Memory) // to find the other problems
	}
	b.store = store
	if len(cfg.Session.Keys) == 0 && cfg.Store.IsInMemory() {
		cfg.Session.Keys = []session.Secret{newKey()} // the sessions that it seals end with the process too
	}
	var secure *tls.Config
	var certErr, serverErr error
	if files := cfg.Server.TLS; files.CertFile != "" && files.KeyFile != "" {
		if b.cert, certErr = loadCertificate(files, log); certErr == nil {
			secure = b.cert.tlsConfig()
		}
	}
	b.server, serverErr = cfg.NewServer(store, app, secure, log)
	if err := config.Join(storeErr, certErr, serverErr); err != nil {
		store.Close()
		return nil, err
	}
	return b, nil
}

// newHTTPServer returns a server for what is not public.
func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// run serves public and the admin listener until ctx ends, and then shuts down.
// It closes public. At each signal from hangup it loads the configuration again;
// hangup may be nil.
func (b *broker) run(
	ctx context.Context, public net.Listener, hangup <-chan os.Signal, load func() (*config.Config, error),
) error {
	defer public.Close()
	admin, err := net.Listen("tcp", b.cfg.Server.AdminListen)
	if err != nil {
		return fmt.Errorf("server.admin_listen: %w", err)
	}
	b.log.Info("listening", "listen", public.Addr().String(), "admin_listen", admin.Addr().String(), "public_url", b.cfg.Server.PublicURL)

	adminServer := newHTTPServer(b.server.Admin(), b.log)
	group, serving := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(adminServer, admin) })
	group.Go(func() error {
		defer adminServer.Close()
		return b.server.Run(serving, public)
	})
	look := make(chan struct{}, 1) // at the certificate's files
	if b.cert != nil {
		group.Go(func() error {
			b.cert.watch(serving, look)
			return nil
		})
	}
	group.Go(func() error {
		for {
			select {
			case <-hangup:
				select {
				case look <- struct{}{}:
				default:
				}
				b.reload(serving, load)
			case <-serving.Done():
				return nil
			}
		}
	})
	return group.Wait()
}

// reload puts the configuration that load returns in force. If it cannot, it logs
// why and keeps the one before. No session ends.
func (b *broker) reload(ctx context.Context, load func() (*config.Config, error)) {
	next, err := load()
	if err == nil {
		err = b.replace(ctx, next)
	}
	var problems config.Errors
	switch {
	case errors.As(err, &problems):
		b.log.Error("configuration not changed: the one before stays in force", "mistakes", problems.Lines())
	case err != nil:
		b.log.Error("configuration not changed: the one before stays in force", "err", err)
	default:
		b.log.Info("configuration", "in_force", b.cfg)
		for _, warning := range b.cfg.Warnings() {
			b.log.Warn("configuration", "warning", warning)
		}
	}
}

func (b *broker) replace(ctx context.Context, next *config.Config) error {
	if len(next.Session.Keys) == 0 && next.Store.IsInMemory() {
		next.Session.Keys = b.cfg.Session.Keys
	}
	server, err := next.NewServer(b.store, b.app, nil, b.log)
	if err := config.Join(next.CheckReload(b.cfg), err); err != nil {
		return err
	}
	if err := b.server.Reload(ctx, server); err != nil {
		return err
	}
	b.cfg = next
	return nil
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
