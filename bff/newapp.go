package bff

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
	"github.com/cloakroom-bff/cloakroom/internal/pace"
	"github.com/cloakroom-bff/cloakroom/internal/span"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
	"github.com/cloakroom-bff/cloakroom/session"
)

// newApp returns an app for cfg, whose Logger is set.
func newApp(cfg Config) (*app, error) {
	cfg.Limits.setDefaults()
	a := &app{
		prefix: cmp.Or(cfg.Prefix, "/bff"), proxies: cfg.TrustedProxies,
		frontend: cfg.Frontend, devTools: cfg.DevTools, page: cfg.Page, settings: cfg.PublicSettings,
		claims: cfg.Claims, keepStorage: cfg.KeepStorage, onEvent: cfg.Observe,
		afterEnd:      cmp.Or(cfg.PromptAfterEnd, PromptLogin),
		maxPerUser:    cfg.Sessions.MaxPerUser,
		idleTimeout:   cmp.Or(cfg.Sessions.IdleTimeout, session.DefaultIdleTimeout),
		events:        newLimiter[EventKind](eventLimit),
		limits:        cfg.Limits,
		logins:        newLimiter[[16]byte](cfg.Limits.Logins),
		exchanges:     newLimiter[[16]byte](cfg.Limits.Logins),
		refreshes:     newLimiter[[16]byte](refreshLimit),
		pace:          pace.Limit{Rate: cmp.Or(cfg.BodyMinRate, pace.DefaultRate), Window: pace.DefaultWindow},
		adminToken:    cfg.AdminToken,
		shutdownDelay: cfg.ShutdownDelay,
		shutdownGrace: cmp.Or(cfg.ShutdownGrace, 30*time.Second),
		tracer:        span.Tracer(cfg.TracerProvider),
	}
	if len(a.settings) == 0 {
		a.settings = json.RawMessage("{}")
	}
	a.log = withTraces(cfg.Logger, a.tracer)
	publicURL, err := a.setPublicURL(cfg.PublicURL)
	err = errors.Join(err,
		a.check(cfg, publicURL),
		a.addRoutes(cfg, publicURL),
		a.addFrontendServer(cfg.FrontendServer),
		a.addProvider(cfg),
		a.logged.set(&cfg),
		a.users.set(cfg.LogUsers, cfg.Sessions.Keys, cfg.Provider.Issuer),
		a.addSessions(cfg, publicURL))
	if err != nil {
		return nil, err
	}
	a.addEndpoints(cfg.Client)
	return a, nil
}

// setPublicURL sets where browsers see the app. It returns nil after a mistake.
func (a *app) setPublicURL(raw string) (*url.URL, error) {
	u, err := parsePublicURL(raw)
	if err != nil {
		return nil, configerr.New("PublicURL", raw, err)
	}
	a.origin, a.host, a.base = u.Scheme+"://"+u.Host, u.Host, u.Path
	return u, nil
}

// check returns the mistakes in what needs no more than a check. publicURL is
// nil if it has a mistake.
func (a *app) check(cfg Config, publicURL *url.URL) error {
	var prefixErr, pageErr error
	if !isBasePath(a.prefix) || strings.HasSuffix(a.prefix, "/") {
		prefixErr = configerr.New("Prefix", a.prefix, fmt.Errorf("%q is not a path such as /bff", a.prefix))
	}
	if err := checkPage(cfg.Page); err != nil {
		pageErr = configerr.New("Page", nil, err)
	}
	return errors.Join(prefixErr, checkDevTools(cfg.DevTools, publicURL), pageErr, cfg.Claims.check(),
		cfg.Limits.check(), cmp.Or(cfg.PromptAfterEnd, PromptLogin).check())
}

// addProvider sets the provider, and the source of the broker's own tokens. It
// comes after the routes, for which the provider issues tokens.
func (a *app) addProvider(cfg Config) error {
	p := cfg.Provider
	p.RedirectURI = a.endpointURL("/callback")
	p.ClaimMap, p.Logger, p.TracerProvider = cfg.Claims.Map, a.log, cfg.TracerProvider
	p.Targets, p.WithoutLogin = a.targets(), a.withoutLogin()
	p.Observe = func(endpoint string, status int, took time.Duration) {
		a.server.metrics.countProviderRequest(endpoint, status, took)
	}
	var err error
	a.provider, err = oidc.New(p)
	return errors.Join(configerr.In("Provider", err), a.setClientTokens(), a.checkResources(p.Resources))
}

// addSessions sets the sessions, whose tokens the provider issues, and what is
// sealed with their keys.
func (a *app) addSessions(cfg Config, publicURL *url.URL) error {
	a.app = session.App{Issuer: cfg.Provider.Issuer, ClientID: cfg.Provider.ClientID, Origin: a.origin + a.base}
	sessions, cookie := cfg.Sessions, cfg.Cookie
	if sessions.Store != nil {
		a.store = &measuredStore{sessions.Store, a}
		sessions.Store = a.store
	}
	sessions.App, sessions.Logger, sessions.TracerProvider = a.app, a.log, cfg.TracerProvider
	sessions.Observe, sessions.Waited = a.observe, recordWait
	sessions.Refresh, sessions.Revoke, sessions.Ready = a.provider.Refresh, a.revokeTokens, a.provider.Admit
	sessions.Wait, sessions.AccessTokenLifetime = cfg.Provider.Wait, cfg.Provider.AccessTokenLifetime
	var err error
	if a.sessions, err = session.NewManager(sessions); err != nil {
		return configerr.In("Sessions", err)
	}
	if publicURL != nil {
		cookie.InsecureHTTP, cookie.Port = publicURL.Scheme == "http", publicURL.Port()
		cookie.BasePath = publicURL.Path
	}
	ring := a.sessions.Keyring()
	a.cookie = session.NewCookie(ring, cookie)
	a.attempts = newAttempts(cookie, ring)
	a.attempts.refused = a.cookieRefused
	a.pageCookies = ring.Codec("admin page", adminSignIn)
	a.logoutStates = ring.Codec("logout state", time.Hour)
	a.history = newHistory(sessions, ring, a.log)
	a.hints, err = newLogoutHints(cookie, sessions.Keys, a.app.Origin, cfg.Provider)
	return err
}

// addEndpoints sets the table of endpoints. client serves the files of the
// browser client, and may be nil.
func (a *app) addEndpoints(client http.Handler) {
	a.table = make(map[string][]endpoint)
	formPost := a.provider.Config().ResponseMode == "form_post"
	for _, e := range endpoints {
		if e.path == "/callback" && (e.method == http.MethodPost) != formPost {
			continue // Form Post Response Mode: a response in the query is not one
		}
		a.table[a.prefix+e.path] = append(a.table[a.prefix+e.path], e)
	}
	if client == nil {
		return
	}
	serve := func(_ *app, w *response, r *http.Request) error {
		client.ServeHTTP(w, r)
		return nil
	}
	for _, file := range []string{"/client.js", "/client.d.ts"} {
		a.table[a.prefix+file] = []endpoint{{"GET", file, public, serve}}
	}
}

// parsePublicURL parses the URL that browsers see: a scheme, a host, and a path
// or none. The path of the result has no slash at its end.
func parsePublicURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return nil, errors.New("missing")
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("%q is not a URL such as https://app.example.com", raw)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(raw, "#"):
		return nil, fmt.Errorf("%q has more than a scheme, a host and a path", raw)
	case u.Path != "" && u.Path != "/" && !isBasePath(u.EscapedPath()):
		return nil, fmt.Errorf("%q: the path is not one such as /shop", raw)
	case u.Scheme == "http" && !loopback.IsHost(u.Hostname()):
		return nil, fmt.Errorf("%q: without https the session cookie is sent in plain text; "+
			"http is for loopback hosts only", raw)
	}
	host, err := browserHost(u)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", raw, err)
	}
	u.Host, u.Path, u.RawPath = host, strings.TrimSuffix(u.Path, "/"), ""
	return u, nil
}

// PublicOrigin returns the origin of a public URL and the path of the app
// there, as cookies and records are bound to them (session.App.Origin). The
// error is that of New.
func PublicOrigin(publicURL string) (string, error) {
	u, err := parsePublicURL(publicURL)
	if err != nil {
		return "", configerr.New("PublicURL", publicURL, err)
	}
	return u.Scheme + "://" + u.Host + u.Path, nil
}

// isBasePath reports whether a path can be that of a public URL, or the prefix.
// It has only characters that are the same in a URL, in the Path of a cookie
// and in a header.
func isBasePath(escaped string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/"
	return strings.Trim(escaped, allowed) == "" && urlpath.Check(escaped) == nil
}
