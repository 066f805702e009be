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
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/check"
	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/devtools"
	"github.com/cloakroom-bff/cloakroom/internal/replicas"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// broker is a bff.Server with its store, certificate and configuration.
type broker struct {
	extras
	log    *slog.Logger
	store  config.TokenStore
	cert   *certificate // nil: without TLS
	server *bff.Server
	source source

	logSettings *logSettings // nil: they are fixed

	replicas *replicas.Watcher
	sessions atomic.Pointer[float64] // what countSessions has counted; nil: nothing yet
	audit    *auditLog

	reloading sync.Mutex // held during a reload; guards repeated
	repeated  repeatedReload

	mu           sync.Mutex // guards all below
	cfg          *config.Config
	self         replicas.Description // of cfg
	hash         uint64               // of cfg
	inForceSince time.Time            // of cfg
	reloadFailed bool                 // the last one
	read         map[string]fileState // the files at the last read of the configuration
}

// extras are what a broker has besides its configuration. The zero value means
// nothing.
type extras struct {
	app    fs.FS                // instead of frontend.dir and frontend.url
	traces trace.TracerProvider // nil: there are no traces
	tools  *devtools.Tools      // for developers; nil: there are none
}

// lastRead returns the states of the files at the last read of the
// configuration.
func (b *broker) lastRead() map[string]fileState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.read
}

// source loads a broker's configuration. If load is nil, the configuration
// cannot be reloaded.
type source struct {
	load  func() (*config.Config, error)
	files func() []string // the files on which the configuration depends
}

// config returns the configuration in force.
func (b *broker) config() *config.Config {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cfg
}

// description returns what this replica compares with the others.
func (b *broker) description() replicas.Description {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.self
}

// describe returns the description of a replica with cfg for app.
func describe(cfg *config.Config, app session.App) replicas.Description {
	v, rev := buildInfo()
	return replicas.Description{
		Version: v, Commit: rev, App: app, Keys: cfg.SessionKeys(), Settings: cfg.Settings(),
	}
}

// newBroker returns the broker that cfg describes. Its only I/O is to read the
// files that cfg names. The error is a config.Errors.
func newBroker(cfg *config.Config, more extras, log *slog.Logger) (*broker, error) {
	b := &broker{cfg: cfg, extras: more, log: log, audit: newAuditLog(os.Stdout, log)}
	store, storeErr := cfg.OpenStore(log)
	if storeErr != nil {
		store = new(tokenstore.Memory) // to find the other mistakes
	}
	if b.tools != nil {
		store = b.tools.Store(store)
	}
	b.store = store
	if len(cfg.Session.Keys) == 0 && cfg.Store.IsInMemory() {
		cfg.Session.Keys = []session.Secret{newKey()} // its sessions end with the process too
	}
	var secure *tls.Config
	var certErr, serverErr error
	if files := cfg.Server.TLS; files.IsOn() {
		if b.cert, certErr = loadCertificate(files, log); certErr == nil {
			secure = b.cert.tlsConfig()
		}
	}
	b.server, serverErr = cfg.NewServer(b.parts(secure))
	audit, auditErr := b.audit.open(cfg.Log.Audit)
	if err := config.Join(storeErr, certErr, serverErr, auditErr); err != nil {
		store.Close()
		closeFile(audit)
		b.audit.close()
		return nil, err
	}
	b.audit.use(audit)
	if b.tools != nil {
		b.tools.Use(b.server)
	}
	b.self = describe(cfg, b.server.App())
	b.hash, b.inForceSince = b.self.Hash(), time.Now()
	var shared session.Store
	if cfg.Store.IsShared() {
		shared = store
	}
	b.replicas = replicas.New(shared, b.description, log)
	return b, nil
}

// parts returns what a server of this broker has besides its configuration.
func (b *broker) parts(secure *tls.Config) config.Parts {
	parts := config.Parts{
		Store: b.store, App: b.app, TLS: secure, Traces: b.traces, Observe: b.audit.observe, Log: b.log,
	}
	if b.tools != nil {
		parts.Observe, parts.DevTools = b.tools.Observe, b.tools
	}
	return parts
}

// newHTTPServer returns a server for listeners that are not public.
func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       10 * time.Second, // a slow body without a token must not delay the shutdown
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// run serves public and the admin listener until ctx ends, and then shuts down.
// It closes public. It reloads the configuration at each signal from hangup,
// which may be nil, and when a file of the configuration has changed.
func (b *broker) run(ctx context.Context, public net.Listener, hangup <-chan os.Signal) error {
	defer public.Close()
	admin, err := net.Listen("tcp", b.cfg.Server.AdminListen)
	if err != nil {
		return fmt.Errorf("server.admin_listen: %w", err)
	}
	b.log.Info("listening", "listen", public.Addr().String(),
		"admin_listen", admin.Addr().String(), "public_url", b.cfg.Server.PublicURL)

	adminServer := newHTTPServer(b.adminHandler(), b.log)
	group, serving := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(adminServer, &adminListener{Listener: admin}) })
	group.Go(func() error {
		defer adminServer.Close()
		return b.server.Run(serving, public)
	})
	group.Go(func() error {
		b.replicas.Run(serving)
		return nil
	})
	group.Go(func() error {
		b.countSessions(serving)
		return nil
	})
	checkCert := make(chan struct{}, 1)
	if b.cert != nil {
		group.Go(func() error {
			b.cert.watch(serving, checkCert)
			return nil
		})
	}
	group.Go(func() error { // ends by itself: what it reads is bounded
		b.logBlocked(b.config())
		return nil
	})
	if b.source.load != nil {
		group.Go(func() error {
			b.watchFiles(serving)
			return nil
		})
	}
	group.Go(func() error {
		for {
			select {
			case <-hangup:
				select {
				case checkCert <- struct{}{}:
				default:
				}
				b.reload(serving)
			case <-serving.Done():
				return nil
			}
		}
	})
	return group.Wait()
}

// reload loads the configuration and applies it. After an error, which it also
// logs, the previous configuration stays in force. Sessions are not affected.
// If the error is transient, watchFiles repeats the reload.
func (b *broker) reload(ctx context.Context) error {
	b.reloading.Lock()
	defer b.reloading.Unlock()
	b.repeated = repeatedReload{}
	return b.loadAndApply(ctx)
}

// loadAndApply is reload, but does not log an error that is to be repeated and
// was logged before. The caller holds reloading.
func (b *broker) loadAndApply(ctx context.Context) error {
	if b.source.load == nil {
		return errors.New("this broker cannot reload its configuration: it has no source")
	}
	states := b.source.states()
	b.mu.Lock()
	b.read = states
	b.mu.Unlock()
	inForce := b.config()
	next, err := b.source.load()
	if next != nil {
		err = b.replace(ctx, next, err)
	}
	b.setReloadFailed(err != nil)
	known := b.repeated.schedule(err, time.Now())
	var problems config.Errors
	switch {
	case errors.Is(err, bff.ErrStopping): // it is not needed any more
	case known:
	case errors.As(err, &problems):
		b.log.Error("configuration not applied; the previous one stays in force",
			"mistakes", problems.Lines(), "repeated", b.repeated.logged != "")
	case err != nil:
		b.log.Error("configuration not applied; the previous one stays in force", "err", err)
	default:
		b.log.Info("configuration", "in_force", next)
		for _, warning := range next.Warnings().Lines() {
			b.log.Warn("configuration", "warning", warning)
		}
		if !reflect.DeepEqual(next.Frontend, inForce.Frontend) {
			b.logBlocked(next)
		}
	}
	return err
}

// logBlocked logs what the Content-Security-Policy blocks in the app.
func (b *broker) logBlocked(cfg *config.Config) {
	if b.app != nil {
		return // of this program
	}
	for _, f := range check.Frontend(cfg) {
		b.log.Warn("part of the app blocked by its policy", "problem", f.Problem, "fix", f.Fix)
	}
}

// replace applies next unless it has mistakes. unread are the mistakes that
// were found when it was loaded, or nil.
func (b *broker) replace(ctx context.Context, next *config.Config, unread error) error {
	inForce := b.config()
	if len(next.Session.Keys) == 0 && next.Store.IsInMemory() {
		next.Session.Keys = inForce.Session.Keys
	}
	credentials, credentialsErr := next.RedisCredentials()
	server, err := next.NewServer(b.parts(nil))
	audit, auditErr := b.audit.open(next.Log.Audit)
	var cert *certificate // nil: the files stay the same
	var certErr error
	if files := next.Server.TLS; files != inForce.Server.TLS && files.IsOn() {
		cert, certErr = loadCertificate(files, b.log)
	}
	err = config.Merge(unread, config.Join(next.CheckReload(inForce), credentialsErr, auditErr, certErr, err))
	if err == nil {
		err = config.Join(b.server.Reload(ctx, server))
	}
	if err != nil {
		closeFile(audit)
		return err
	}
	b.audit.use(audit)
	if redis, ok := b.store.(*tokenstore.Redis); ok {
		redis.SetCredentials(credentials)
	}
	if b.logSettings != nil {
		b.logSettings.apply(&next.Log)
	}
	if cert != nil {
		b.cert.use(cert)
	}
	b.mu.Lock()
	b.cfg, b.self = next, describe(next, server.App())
	b.hash, b.inForceSince = b.self.Hash(), time.Now()
	b.mu.Unlock()
	return nil
}

func serve(s *http.Server, l net.Listener) error {
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

func (b *broker) close() {
	b.audit.close()
	if err := b.store.Close(); err != nil {
		b.log.Warn("close store", "err", err)
	}
}
