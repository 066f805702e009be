package devidp

import (
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/internal/loopback"
)

// Config is the configuration of a provider. Issuer and Clients are required;
// the zero values of the other fields are usable.
type Config struct {
	Issuer  string // on a loopback host, with a path or without
	Clients []Client
	Users   []User   // none means DefaultUsers
	Scopes  []string // what users grant, of what clients ask for; none means all of it
	// ACRValues are the strengths of authentication, the weakest first. None
	// means silver and gold. A user without an ACR signs in with the one that
	// the client requests, otherwise with the weakest.
	ACRValues []string

	AccessTokenTTL time.Duration // zero means 5 minutes
	IDTokenTTL     time.Duration // zero means 5 minutes

	// RefreshTokenTTL is the lifetime of refresh tokens, which rotation does
	// not extend, and of a user's session after the last sign-in. Zero means 12
	// hours.
	RefreshTokenTTL time.Duration
	// RefreshGrace is how long a replaced refresh token still returns its
	// successor. Zero means that a second use revokes the family.
	RefreshGrace time.Duration

	Audience         string // aud of access tokens when the request names no resource; empty means "api"
	RequireDPoPNonce bool   // proofs for the token endpoint need a nonce (RFC 9449 section 8)

	SigningAlgorithm string // RS256, the default, or PS256
	// NewKey returns a new signing key, never the same one twice. Nil means a
	// function that generates one of 2048 bits.
	NewKey func() (*rsa.PrivateKey, error)

	CookiePath string // path of all cookies; empty means that of the issuer
	// HTTPClient sends back-channel logouts. Nil means a client with a timeout
	// of 5 seconds that follows no redirects.
	HTTPClient *http.Client
	Logger     *slog.Logger // nil means slog.Default()
}

// Client is a relying party. It needs at least one of Secret, Keys and
// Certificate, and may authenticate with any that it has.
type Client struct {
	ID     string
	Secret string            // for client_secret_basic and client_secret_post
	Keys   []jose.JSONWebKey // public keys, for private_key_jwt and signed requests
	// Certificate is for self_signed_tls_client_auth at the endpoints below
	// /mtls. The client's tokens are bound to it (RFC 8705 section 3).
	Certificate            *x509.Certificate
	RedirectURIs           []string
	PostLogoutRedirectURIs []string
	BackchannelLogoutURI   string   // empty: no logout token is sent
	Scopes                 []string // that it may request; none means all
	DPoPBound              bool     // access tokens require a DPoP proof (RFC 9449 section 5.2)
	SignsRequests          bool     // unsigned authorization requests are refused (RFC 9101 section 10.5)
	PushesRequests         bool     // so are those that are not pushed (RFC 9126 section 6)
	SignedUserInfo         bool     // userinfo is a JWT (OpenID Connect Core section 5.3.2)
	// NamesUsers allows grant_type=password (RFC 6749 section 4.3) for any
	// user, with any password. Any visitor can sign in here as any user anyway.
	NamesUsers bool
}

// setDefaults replaces zero values by their defaults. issuer is the parsed
// Issuer.
func (cfg *Config) setDefaults(issuer *url.URL) {
	cfg.AccessTokenTTL = cmp.Or(cfg.AccessTokenTTL, 5*time.Minute)
	cfg.IDTokenTTL = cmp.Or(cfg.IDTokenTTL, 5*time.Minute)
	cfg.RefreshTokenTTL = cmp.Or(cfg.RefreshTokenTTL, 12*time.Hour)
	cfg.Audience = cmp.Or(cfg.Audience, "api")
	cfg.SigningAlgorithm = cmp.Or(cfg.SigningAlgorithm, "RS256")
	cfg.CookiePath = cmp.Or(cfg.CookiePath, strings.TrimSuffix(issuer.Path, "/")+"/")
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	if cfg.NewKey == nil {
		cfg.NewKey = func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) }
	}
	if cfg.HTTPClient == nil {
		cfg.HTTPClient = &http.Client{
			Timeout:       5 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
}

// check returns the issuer, and every mistake.
func (cfg *Config) check() (*url.URL, error) {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	u, err := url.Parse(cfg.Issuer)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || !loopback.IsHost(u.Hostname()):
		wrong("issuer %q is not an http or https URL with a loopback host: this provider signs in anyone", cfg.Issuer)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(cfg.Issuer, "#"):
		wrong("issuer %q must have scheme, host and path only (OpenID Connect Discovery, section 3)", cfg.Issuer)
	case u.Path != "" && (u.EscapedPath() != u.Path || strings.ContainsAny(u.Path, "{}") ||
		path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/") && u.Path != "/"):
		wrong("issuer %q: its path must be clean and without percent-encoding", cfg.Issuer)
	}
	clients := make(map[string]bool)
	for i, c := range cfg.Clients {
		if c.ID == "" || clients[c.ID] {
			wrong("client %d: ID %q is empty or belongs to another client", i, c.ID)
		}
		clients[c.ID] = true
		if c.Secret == "" && len(c.Keys) == 0 && c.Certificate == nil {
			wrong("client %d: Secret, Keys or Certificate is required: all clients are confidential", i)
		}
		for j, k := range c.Keys {
			if !k.IsPublic() || !k.Valid() {
				wrong("client %d: key %d is not a public key", i, j)
			}
		}
		for _, raw := range append(append([]string{c.BackchannelLogoutURI}, c.RedirectURIs...),
			c.PostLogoutRedirectURIs...) {
			if u, err := url.Parse(raw); raw != "" &&
				(err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" ||
					strings.Contains(raw, "#")) {
				wrong("client %d: %q is not an http or https URL without a fragment", i, raw)
			}
		}
	}
	if err := checkUsers(cfg.Users, cfg.ACRValues); err != nil {
		errs = append(errs, err)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"AccessTokenTTL", cfg.AccessTokenTTL}, {"IDTokenTTL", cfg.IDTokenTTL}, {"RefreshTokenTTL",
		cfg.RefreshTokenTTL}, {"RefreshGrace", cfg.RefreshGrace}} {
		if d.value < 0 {
			wrong("%s: %v is negative", d.name, d.value)
		}
	}
	return u, errors.Join(errs...)
}
