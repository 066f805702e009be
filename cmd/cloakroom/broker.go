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
	"sync"
	"sync/atomic"
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

	server  atomic.Pointer[bff.Server] // the one in force; reload puts another in its place
	retired sync.WaitGroup             // those before, while they finish what they have begun
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
	var certErr error
	if files := cfg.Server.TLS; files.CertFile != "" && files.KeyFile != "" {
		b.cert, certErr = loadCertificate(files, log)
	}
	server, serverErr := cfg.NewServer(store, app, log)
	if err := config.Join(storeErr, certErr, serverErr); err != nil {
		store.Close()
		return nil, err
	}
	b.server.Store(server)
	return b, nil
}

func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second, // bodies are bounded by their rate (server.limits.body_min_rate): uploads and streams take as long as they take
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),

		DisableGeneralOptionsHandler: true, // OPTIONS * is for the handler to refuse
	}
}

// closeGrace is the time for token refreshes and revocations that are in flight when
// all requests have ended.
const closeGrace = 10 * time.Second

// run serves until ctx ends, on public and on the admin listener, then shuts down: no new connections, what is under way
// finishes, and no rotated token is lost. At each signal from hangup it loads the configuration again; hangup may be nil. It closes public.
func (b *broker) run(ctx context.Context, public net.Listener, hangup <-chan os.Signal, load func() (*config.Config, error)) error {
	defer public.Close()
	var secure *tls.Config
	look := make(chan struct{}, 1) // at the certificate's files
	if b.cert != nil {
		secure = b.cert.tlsConfig()
	}
	admin, err := net.Listen("tcp", b.cfg.Server.AdminListen)
	if err != nil {
		return fmt.Errorf("server.admin_listen: %w", err)
	}
	b.log.Info("listening", "listen", public.Addr().String(), "admin_listen", admin.Addr().String(), "public_url", b.cfg.Server.PublicURL)

	publicServer := newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.server.Load().ServeHTTP(w, r) }), b.log)
	adminServer := newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.server.Load().Admin().ServeHTTP(w, r) }), b.log)
	group, serving := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(publicServer, bff.NewLoggedListener(public, secure, b.log)) })
	group.Go(func() error { return serve(adminServer, admin) })
	if b.cert != nil {
		group.Go(func() error {
			b.cert.watch(serving, look)
			return nil
		})
	}
	b.server.Load().Start()
	group.Go(func() error {
		for serving.Err() == nil {
			select {
			case <-hangup:
				select {
				case look <- struct{}{}:
				default:
				}
				b.reload(serving, load)
			case <-serving.Done(): // a signal to end, or a listener that failed
			}
		}
		b.log.Info("shutting down", "grace", b.cfg.Server.ShutdownGrace.String())
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), b.cfg.Server.ShutdownGrace)
		defer cancel()
		defer adminServer.Close()
		publicServer.RegisterOnShutdown(b.server.Load().EndStreams)
		if err := publicServer.Shutdown(grace); err != nil {
			b.log.Warn("requests still open after the grace period are cut", "err", err)
			publicServer.Close()
		}
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeGrace) // streams may have used up the other
		defer cancel()
		err := b.server.Load().Close(closing)
		b.retired.Wait() // bounded by the grace of their own
		return err
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
	server, err := next.NewServer(b.store, b.app, b.log)
	if err := config.Join(next.CheckReload(b.cfg), err); err != nil {
		return err
	}
	// The old server answers until the new one has found its provider, or for as long as that takes at most.
	server.Start()
	finding, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	server.Found(finding)
	old := b.server.Swap(server)
	b.cfg = next
	b.retired.Go(func() { // until what was begun under it is over, or until the shutdown
		old.WaitForStreams(ctx)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), next.Server.ShutdownGrace)
		defer cancel()
		if err := old.Close(grace); err != nil {
			b.log.Warn("previous configuration closed with requests in progress", "err", err)
		}
	})
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
