package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
	"github.com/cloakroom-bff/cloakroom/web"
)

// store is what the broker needs of a token store beyond session.Store.
type store interface {
	session.Store
	io.Closer
}

// broker is a bff.Server with all it needs, ready to listen.
type broker struct {
	cfg   *config
	app   fs.FS
	log   *slog.Logger
	store store
	cert  *certificate // nil: without TLS

	server  atomic.Pointer[bff.Server] // the one in force; reload puts another in its place
	retired sync.WaitGroup             // those before, while they finish what they have begun
}

// newBroker puts the parts together. It does no I/O but to look at the app's files, which are app, or those in frontend.dir where that is
// nil. The error is a *configError with every mistake in cfg.
func newBroker(cfg *config, app fs.FS, log *slog.Logger) (*broker, error) {
	b := &broker{cfg: cfg, app: app, log: log}
	var mistakes []string
	if b.store, mistakes = openStore(cfg, log); len(mistakes) > 0 {
		b.store = new(tokenstore.Memory) // what follows is for the other mistakes
	}
	if len(cfg.Session.Keys) == 0 && cfg.Store.URL == "memory:" {
		cfg.Session.Keys = []session.Secret{newKey()} // the sessions it seals live no longer than this process either
	}
	if files := cfg.Server.TLS; files.CertFile != "" && files.KeyFile != "" {
		var err error
		if b.cert, err = loadCertificate(files, log); err != nil {
			mistakes = append(mistakes, err.Error())
		}
	}
	server, more := newServer(cfg, b.store, app, log)
	if mistakes = append(mistakes, more...); len(mistakes) > 0 {
		return nil, &configError{mistakes}
	}
	b.server.Store(server)
	return b, nil
}

// newServer makes the server that cfg describes, or says what is wrong with cfg.
func newServer(cfg *config, store store, app fs.FS, log *slog.Logger) (*bff.Server, []string) {
	var mistakes []string
	collect := func(more []string) { mistakes = append(mistakes, more...) }

	proxies, wrong := cfg.trustedProxies()
	collect(wrong)
	collect(cfg.checkListeners())
	sameSite, ok := map[string]http.SameSite{"": http.SameSiteStrictMode, "strict": http.SameSiteStrictMode, "lax": http.SameSiteLaxMode}[cfg.Session.Cookie.SameSite]
	if !ok {
		collect([]string{fmt.Sprintf("session.cookie.same_site: %q is neither strict nor lax", cfg.Session.Cookie.SameSite)})
	}
	keys, wrong := cfg.sessionKeys()
	collect(wrong)
	frontend, err := newFrontend(cfg, app, log)
	if err != nil {
		collect([]string{"frontend.dir: " + err.Error()})
	}
	routes, wrong := cfg.routes(log)
	collect(wrong)
	provider, wrong := cfg.provider()
	collect(wrong)
	if len(keys) == 0 && len(cfg.Session.Keys) > 0 {
		keys = [][]byte{bytes.Repeat([]byte("k"), 32)} // every one is wrong, as has been said
	}
	server, err := bff.New(bff.Config{
		PublicURL:      cfg.Server.PublicURL,
		Prefix:         cfg.Server.Prefix,
		TrustedProxies: proxies,
		Provider:       provider,
		Claims:         bff.Claims(cfg.Session.Claims),
		KeepStorage:    cfg.Session.KeepStorage,
		BodyMinRate:    int64(cfg.Server.Limits.BodyMinRate),
		Sessions: session.Config{
			Store:        store,
			Keys:         keys,
			IdleTimeout:  cfg.Session.IdleTimeout,
			MaxLifetime:  cfg.Session.MaxLifetime,
			RefreshAhead: cfg.Session.RefreshAhead,
			CacheMaxAge:  cfg.Session.CacheMaxAge,
			MaxPerUser:   cfg.Session.MaxPerUser,
		},
		Cookie: session.CookieConfig{SameSite: sameSite},
		Routes: routes,
		Limits: bff.Limits{
			Logins: bff.RateLimit{Rate: float64(cfg.Server.Limits.Logins.Rate), Burst: int(cfg.Server.Limits.Logins.Burst)},
		},
		Frontend: frontend,
		Client:   web.Client(),
		Logger:   log,
	})
	if err != nil {
		collect(explain(err))
	}
	return server, mistakes
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

// openStore makes the store, or says what is wrong with its configuration. It
// does no I/O but to read the files that are named there.
func openStore(cfg *config, log *slog.Logger) (store, []string) {
	c := cfg.Store
	var mistakes []string
	mistake := func(key, format string, args ...any) {
		mistakes = append(mistakes, "store."+key+": "+fmt.Sprintf(format, args...))
	}
	scheme, _, _ := strings.Cut(c.URL.Reveal(), ":")
	switch scheme {
	case "memory":
		for key, value := range map[string]string{"cert_file": c.CertFile, "key_file": c.KeyFile, "password_file": c.PasswordFile} {
			if value != "" {
				mistake(key, "%q is for Redis, and store.url is memory:", value)
			}
		}
		slices.Sort(mistakes)
		return new(tokenstore.Memory), mistakes
	case "redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster", "unix":
	default:
		mistake("url", "its scheme is none of memory, redis, redis+sentinel, redis+cluster (with TLS: rediss, rediss+sentinel, rediss+cluster), unix")
		return nil, mistakes
	}
	redis := tokenstore.RedisConfig{URL: c.URL.Reveal(), Prefix: c.Prefix, Logger: log}
	var err error
	if redis.RootCAs, err = certPool(c.CAFile); err != nil {
		mistake("ca_file", "%v", err)
	}
	switch {
	case c.CertFile == "" && c.KeyFile == "":
	case c.KeyFile == "":
		mistake("key_file", "missing; it is the key of store.cert_file %q", c.CertFile)
	case c.CertFile == "":
		mistake("cert_file", "missing; store.key_file %q is the key of a certificate", c.KeyFile)
	case !strings.HasPrefix(scheme, "rediss"):
		mistake("cert_file", "%q is for TLS, and store.url begins with %s:; let it begin with rediss", c.CertFile, scheme)
	default:
		redis.ClientCertificate = func() (*tls.Certificate, error) { // for each connection: certificates are renewed
			cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			return &cert, err
		}
		if _, err := redis.ClientCertificate(); err != nil {
			mistake("cert_file", "%q and store.key_file %q are not a certificate and its key: %v", c.CertFile, c.KeyFile, err)
		}
	}
	if c.PasswordFile != "" {
		redis.Password = func() (string, error) { return readPassword(c.PasswordFile) }
		if _, err := redis.Password(); err != nil {
			mistake("password_file", "%v", err)
		}
		if hasPassword(c.URL.Reveal()) {
			mistake("password_file", "%q is set, and store.url holds a password too; remove one of them", c.PasswordFile)
		}
	}
	s, err := tokenstore.NewRedis(redis)
	if err != nil {
		mistake("url", "%v", err)
	}
	if len(mistakes) > 0 {
		if s != nil {
			s.Close()
		}
		return nil, mistakes
	}
	return s, nil
}

// hasPassword reports whether a store URL, of one host or of several, holds a password.
func hasPassword(storeURL string) bool {
	_, rest, _ := strings.Cut(storeURL, "://")
	authority := rest[:len(rest)-len(strings.TrimLeftFunc(rest, func(c rune) bool { return c != '/' && c != '?' }))]
	user := authority[:max(0, strings.LastIndexByte(authority, '@'))]
	return strings.Contains(user, ":")
}

// readPassword reads a password from a file, without the line end that editors
// put after it.
func readPassword(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	password := strings.TrimSpace(string(text))
	if password == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	return password, nil
}

// certPool reads the certificates of a file; nil where there is none, which means those of the system.
func certPool(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return pool, nil
}

func newFrontend(cfg *config, app fs.FS, log *slog.Logger) (http.Handler, error) {
	if cfg.Frontend.Dir == "" && app == nil {
		return nil, nil
	}
	var provider []string
	for _, raw := range []string{cfg.OIDC.Issuer, cfg.OIDC.LogoutURL} {
		if u, err := url.Parse(raw); err == nil && u.Host != "" {
			provider = append(provider, u.Scheme+"://"+u.Host)
		}
	}
	return web.New(web.Config{
		Dir: cfg.Frontend.Dir, FS: app,
		FormAction: provider,                                   // a logout form is redirected there
		Sources:    map[string][]string{"frame-src": provider}, // and so is a silent login
		HTTPS:      strings.HasPrefix(cfg.Server.PublicURL, "https:"), Logger: log,
	})
}

// closeGrace is how long token refreshes and revocations may take that are under way when all requests are over.
const closeGrace = 10 * time.Second

// run serves until ctx ends, on public and on the admin listener, then shuts down: no new connections, what is under way
// finishes, and no rotated token is lost. At each signal from hangup it loads the configuration again; hangup may be nil. It closes public.
func (b *broker) run(ctx context.Context, public net.Listener, hangup <-chan os.Signal, load func() (*config, error)) error {
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

// reload puts the configuration that load returns in force, or says why it cannot and keeps the one before. Nobody is signed out by it.
func (b *broker) reload(ctx context.Context, load func() (*config, error)) {
	next, err := load()
	if err == nil {
		err = b.replace(ctx, next)
	}
	var wrong *configError
	switch {
	case errors.As(err, &wrong):
		b.log.Error("configuration not changed: the one before stays in force", "mistakes", wrong.mistakes)
	case err != nil:
		b.log.Error("configuration not changed: the one before stays in force", "err", err)
	default:
		b.log.Info("configuration", "in_force", b.cfg.logValue())
		for _, warning := range b.cfg.warnings() {
			b.log.Warn("configuration", "warning", warning)
		}
	}
}

func (b *broker) replace(ctx context.Context, next *config) error {
	var mistakes []string
	for key, changed := range map[string]bool{
		"server.listen":       next.Server.Listen != b.cfg.Server.Listen,
		"server.admin_listen": next.Server.AdminListen != b.cfg.Server.AdminListen,
		"server.tls":          next.Server.TLS != b.cfg.Server.TLS,
		"store":               next.Store != b.cfg.Store,
	} {
		if changed {
			mistakes = append(mistakes, key+": a change needs a restart")
		}
	}
	if len(next.Session.Keys) == 0 && next.Store.URL == "memory:" {
		next.Session.Keys = b.cfg.Session.Keys
	}
	server, more := newServer(next, b.store, b.app, b.log)
	if mistakes = append(mistakes, more...); len(mistakes) > 0 {
		slices.Sort(mistakes)
		return &configError{mistakes}
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
			b.log.Warn("the configuration before was still in use by some", "err", err)
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
