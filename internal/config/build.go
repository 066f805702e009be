package config

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/bearer"
	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/web"
)

// Parts are what a server has besides its configuration.
type Parts struct {
	Store   session.Store
	App     fs.FS                            // nil: frontend.dir or frontend.url
	TLS     *tls.Config                      // of the listeners; nil: plain HTTP
	Traces  trace.TracerProvider             // nil: no spans
	Observe func(context.Context, bff.Event) // nil: events are in the log only
	Log     *slog.Logger

	DevTools http.Handler // nil: there are none
}

// NewServer returns the server that c describes. Its only I/O is to read the
// files that c names. The error is an Errors.
func (c *Config) NewServer(parts Parts) (*bff.Server, error) {
	var problems Errors
	cfg := c.serverConfig(parts.Log, &problems)
	cfg.Sessions.Store, cfg.TLS = parts.Store, parts.TLS
	cfg.TracerProvider, cfg.Observe, cfg.DevTools = parts.Traces, parts.Observe, parts.DevTools
	frontend, err := c.frontend(parts.App, parts.Log)
	problems = append(problems, fieldErrors(err, frontendKey)...)
	c.checkExposed(&problems)
	if frontend != nil {
		cfg.Frontend = frontend
		if c.Frontend.URL != "" {
			cfg.FrontendServer = &bff.FrontendServer{
				URL: c.Frontend.URL, Dev: frontend.IsDevServer(),
				IsPage: frontend.IsPage, SetHeader: frontend.SetHeader,
			}
		}
	}
	server, err := bff.New(cfg)
	translated := slices.Clone(problems)
	for _, problem := range fieldErrors(err, serverKey) {
		// A value that could not be translated is not also missing.
		sameKey := func(other *Error) bool { return other.Key == problem.Key }
		if !slices.ContainsFunc(translated, sameKey) {
			problems = append(problems, problem)
		}
	}
	if problems = urlsWithUserinfo(c).replaceIn(problems); len(problems) > 0 {
		return nil, problems.withValues(c)
	}
	return server, nil
}

// serverConfig translates c, except for the store and the frontend.
func (c *Config) serverConfig(log *slog.Logger, problems *Errors) bff.Config {
	c.checkListeners(problems)
	c.Log.check(problems)
	logins := c.Server.Limits.Logins
	return bff.Config{
		PublicURL:      c.Server.PublicURL,
		Prefix:         c.Server.Prefix,
		TrustedProxies: c.trustedProxies(problems),
		Provider:       c.provider(problems),
		Claims:         bff.Claims(c.Session.Claims),
		KeepStorage:    c.Session.KeepStorage,
		PromptAfterEnd: bff.PromptAfterEnd(c.OIDC.PromptAfterEnd),
		BodyMinRate:    int64(c.Server.Limits.BodyMinRate),
		Sessions: session.Config{
			Keys:         c.sessionKeys(problems),
			IdleTimeout:  c.Session.IdleTimeout,
			MaxLifetime:  c.Session.MaxLifetime,
			RefreshAhead: c.Session.RefreshAhead,
			CacheMaxAge:  c.Session.CacheMaxAge,
			MaxPerUser:   c.Session.MaxPerUser,
		},
		Cookie: session.CookieConfig{SameSite: c.sameSite(problems)},
		Routes: c.routes(log, problems),
		Limits: bff.Limits{
			Connections: c.Server.Limits.Connections,
			HeaderBytes: int(c.Server.Limits.HeaderBytes),
			Logins:      bff.RateLimit{Rate: float64(logins.Rate), Burst: int(logins.Burst)},
		},
		Page:   c.page(problems),
		Client: web.Client(),

		PublicSettings: c.publicSettings(problems),

		AdminToken:    c.Server.AdminToken,
		ShutdownDelay: time.Duration(c.Server.ShutdownDelay),
		ShutdownGrace: c.Server.ShutdownGrace,
		Logger:        log,
		LogRequests:   bff.LogRequests(c.Log.Access),
		LogExclude:    c.Log.Exclude,
		LogUsers:      bff.LogUsers(c.Log.Users),
	}
}

// levels are the values of log.level.
var levels = map[string]slog.Level{
	"error": slog.LevelError, "warn": slog.LevelWarn, "": slog.LevelInfo, "info": slog.LevelInfo,
	"debug": slog.LevelDebug,
}

// check reports mistakes in what the process applies itself.
func (l *Log) check(problems *Errors) {
	if _, ok := levels[l.Level]; !ok {
		problems.add("log.level", "%q is not error, warn, info or debug", l.Level)
	}
	if !slices.Contains([]string{"", "json", "text"}, l.Format) {
		problems.add("log.format", "%q is not json or text", l.Format)
	}
}

// MinLevel returns the least level of log lines.
func (l *Log) MinLevel() slog.Level { return levels[l.Level] }

func (c *Config) sameSite(problems *Errors) http.SameSite {
	switch c.Session.Cookie.SameSite {
	case "lax":
		return http.SameSiteLaxMode
	case "", "strict":
	default:
		problems.add("session.cookie.same_site", "%q is not strict or lax", c.Session.Cookie.SameSite)
	}
	return http.SameSiteStrictMode
}

// isHTTPS reports whether a URL has the scheme https, in any letters (RFC 3986,
// section 3.1).
func isHTTPS(raw string) bool {
	scheme, _, _ := strings.Cut(raw, ":")
	return strings.EqualFold(scheme, "https")
}

// routes translates routes, and reads the files that they name.
func (c *Config) routes(log *slog.Logger, problems *Errors) []bff.Route {
	var routes []bff.Route
	for i, r := range c.Routes {
		key := fmt.Sprintf("routes[%d].", i)
		retry, ok := map[string]bool{"": true, "once": true, "true": true, "never": false, "false": false}[r.Retry]
		if !ok {
			problems.add(key+"retry", "%q is not once or never", r.Retry)
		}
		upstreamTLS := r.UpstreamTLS.load(key+"upstream_tls", problems)
		if upstreamTLS != nil && !slices.ContainsFunc(r.Upstream, isHTTPS) {
			problems.add(key+"upstream_tls", "has no effect: no upstream of the route is https")
		}
		routes = append(routes, bff.Route{
			Path:           r.Path,
			Upstream:       r.Upstream,
			TLS:            upstreamTLS,
			StripPrefix:    r.StripPrefix,
			Methods:        r.Methods,
			Token:          bff.Token(r.Token),
			CSRF:           bff.CSRF(r.CSRF),
			AcceptBearer:   c.acceptBearer(r.AcceptBearer, key+"accept_bearer", log, problems),
			Documents:      bff.Documents(r.Documents),
			EncodedSlashes: bff.EncodedSlashes(r.EncodedSlashes),
			HeadersJSON:    r.HeadersJSON,
			Resource:       r.Resource,
			Audience:       r.Audience,
			Scopes:         r.Scopes,
			Grant:          bff.Grant(r.Grant),
			Timeouts:       bff.Timeouts(r.Timeouts),
			MaxBody:        int64(r.MaxBody),
			NoRetry:        !retry,
			Headers:        r.Headers,
			Require:        bff.Require(r.Require),
		})
	}
	return routes
}

// acceptBearer returns the middleware that verifies the access tokens of
// callers. It returns nil if a is nil or has mistakes, which it adds to
// problems with keys below key.
func (c *Config) acceptBearer(
	a *AcceptBearer, key string, log *slog.Logger, problems *Errors,
) func(http.Handler) http.Handler {
	if a == nil {
		return nil
	}
	own := *a
	own.Issuer = cmp.Or(own.Issuer, c.OIDC.Issuer)
	if own.Issuer == c.OIDC.Issuer {
		own.CAFile = cmp.Or(own.CAFile, c.OIDC.CAFile)
	}
	verifier, err := own.Verifier(c.origin(), log)
	found := fromError(err)
	for _, scope := range own.Scopes {
		if scope == "" || strings.ContainsAny(scope, " \"\\") {
			found.add("scopes", "%q is not one scope", scope)
		}
	}
	if len(found) > 0 {
		for _, problem := range found {
			problem.Key = join(key, problem.Key)
		}
		*problems = append(*problems, found...)
		return nil
	}
	if len(own.Scopes) == 0 {
		return verifier.Handler
	}
	return func(next http.Handler) http.Handler {
		return verifier.Handler(bearer.Require(own.Scopes...)(next))
	}
}

// origin returns scheme and host of server.public_url, or what it is if it is
// no URL.
func (c *Config) origin() string {
	u, err := url.Parse(c.Server.PublicURL)
	if err != nil || u.Host == "" {
		return c.Server.PublicURL // reported elsewhere
	}
	return u.Scheme + "://" + u.Host
}

// Verifier returns a verifier of access tokens for an API at an origin, which
// may be empty. The error is an Errors with keys of a, such as audience.
func (a *AcceptBearer) Verifier(origin string, log *slog.Logger) (*bearer.Verifier, error) {
	var problems Errors
	client, err := a.HTTPClient()
	if err != nil {
		problems.add("ca_file", "%w", err)
	}
	verifier, err := bearer.NewVerifier(bearer.Config{
		Issuer:               a.Issuer,
		Audience:             a.Audience,
		Clients:              a.Clients,
		Algorithms:           a.Algorithms,
		InsecureAllowAnyType: a.InsecureAllowAnyType,
		Origin:               origin,
		HTTPClient:           client,
		Logger:               log,
	})
	problems = append(problems, fieldErrors(err, snakeCase)...)
	return verifier, problems.orNil()
}

// HTTPClient returns a client that trusts the CAs in ca_file. With an error, it
// trusts those of the system.
func (a *AcceptBearer) HTTPClient() (*http.Client, error) {
	roots, err := certPool(a.CAFile)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	return &http.Client{Transport: transport}, err
}

// provider translates oidc, and reads the files that it names.
func (c *Config) provider(problems *Errors) bff.ProviderConfig {
	o := c.OIDC
	p := bff.ProviderConfig{
		Issuer:                  o.Issuer,
		ClientID:                o.ClientID,
		ClientSecret:            o.ClientSecret,
		ClientAuth:              oidc.ClientAuth(o.ClientAuth),
		Scopes:                  o.Scopes,
		AssertionAudience:       o.ClientAssertionAudience,
		ClientAssertionFile:     o.ClientAssertionFile,
		ClientAssertionType:     oidc.ClientAssertionType(o.ClientAssertionType),
		TrustedAudiences:        o.TrustedAudiences,
		Resources:               o.Resource,
		Audience:                o.Audience,
		Parameters:              o.AuthorizationParameters,
		PushedRequests:          oidc.PushedRequests(o.PushedRequests),
		SignRequests:            o.SignRequests,
		ResponseMode:            oidc.ResponseMode(o.ResponseMode),
		SenderConstraint:        oidc.SenderConstraint(o.SenderConstraint),
		UserInfo:                o.UserInfo,
		IDTokenAlg:              o.IDTokenAlg,
		Wait:                    o.Wait,
		AccessTokenLifetime:     o.AccessTokenLifetime,
		FAPI2:                   o.Profile == "fapi2",
		LogoutURL:               o.LogoutURL,
		LogoutRedirectParameter: o.LogoutRedirectParameter,
	}
	if o.Profile != "" && o.Profile != "fapi2" {
		problems.add("oidc.profile", "%q is not a profile; the only one is fapi2", o.Profile)
	}
	var err error
	if p.RootCAs, err = certPool(o.CAFile); err != nil {
		problems.add("oidc.ca_file", "%w", err)
	}
	if p.ClientKeys, err = parseKeys([]byte(o.ClientKey.Reveal())); err != nil {
		problems.add("oidc.client_key", "[redacted] %w", err)
	}
	if o.ClientCertFile != "" {
		p.ClientCertificate = o.clientCertificate(p.ClientKeys, problems)
	}
	return p
}

// clientCertificate reads client_cert_file, the certificate for the first key
// in client_key. keys are those in client_key, none after a mistake in it.
// clientCertificate returns nil after a mistake.
func (o *OIDC) clientCertificate(keys []crypto.Signer, problems *Errors) *tls.Certificate {
	if o.ClientKey == "" {
		problems.add("oidc.client_key", "missing; client_cert_file needs its private key here")
	}
	pem, err := os.ReadFile(o.ClientCertFile)
	if err != nil {
		problems.add("oidc.client_cert_file", "%w", err)
	}
	if err != nil || len(keys) == 0 {
		return nil
	}
	cert, err := tls.X509KeyPair(pem, []byte(o.ClientKey.Reveal()))
	if err != nil {
		problems.add("oidc.client_cert_file",
			"%q is not a certificate for the first key in oidc.client_key: %w", o.ClientCertFile, err)
		return nil
	}
	return &cert
}

// trustedProxies parses server.trusted_proxies. A single address is a network
// of one.
func (c *Config) trustedProxies(problems *Errors) []netip.Prefix {
	var proxies []netip.Prefix
	for i, text := range c.Server.TrustedProxies {
		p, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		key := fmt.Sprintf("server.trusted_proxies[%d]", i)
		switch {
		case err != nil:
			problems.add(key, "%q is not a network such as 10.0.0.0/8, or an address", text)
		case p.Bits() == 0:
			problems.add(key, "%q trusts every client, which could then send any client address; "+
				"list only your proxies", text)
		default:
			proxies = append(proxies, p)
		}
	}
	return proxies
}

// checkListeners checks the listen addresses and the keys that they require.
func (c *Config) checkListeners(problems *Errors) {
	s := c.Server
	checkAddress := func(key, addr string) *net.TCPAddr {
		resolved, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			problems.add(key, "%q is not an address such as 127.0.0.1:8080", addr)
		}
		return resolved
	}
	public := checkAddress("server.listen", s.Listen)
	admin := checkAddress("server.admin_listen", s.AdminListen)
	if public != nil && admin != nil && (includes(public, admin) || includes(admin, public)) {
		problems.add("server.admin_listen", "%q is also the address of server.listen %q; choose another port",
			s.AdminListen, s.Listen)
	}
	if host, _, err := net.SplitHostPort(s.AdminListen); err == nil && s.AdminToken == "" && !loopback.IsHost(host) {
		problems.add("server.admin_token",
			"missing; required because server.admin_listen %q is not on the loopback interface", s.AdminListen)
	}
	if (s.TLS.CertFile == "") != (s.TLS.KeyFile == "") {
		problems.add("server.tls", "set both cert_file and key_file, or neither")
	}
}

// includes reports whether a listener at a leaves no place for one at b. One at
// all addresses includes those of IPv4, unless it is at 0.0.0.0 only.
func includes(a, b *net.TCPAddr) bool {
	all := len(a.IP) == 0 || a.IP.Equal(net.IPv6unspecified) || a.IP.Equal(net.IPv4zero) && b.IP.To4() != nil
	return a.Port != 0 && a.Port == b.Port && (all || a.IP.Equal(b.IP))
}
