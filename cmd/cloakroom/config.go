package main

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/cloakroom-bff/cloakroom/bearer"
	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/session"
)

// config is the configuration as it is written: in YAML, where a key is the path of yaml tags (oidc.client_id), and in
// the environment, where it is that path in capitals (CLOAKROOM_OIDC_CLIENT_ID), which wins. A secret can also be the content
// of a file, named by the key with _file at its end.
type config struct {
	Server   serverConfig   `yaml:"server"`
	OIDC     oidcConfig     `yaml:"oidc"`
	Store    storeConfig    `yaml:"store"`
	Session  sessionConfig  `yaml:"session"`
	Routes   []routeConfig  `yaml:"routes"`
	Frontend frontendConfig `yaml:"frontend"`
}

type serverConfig struct {
	Listen         string         `yaml:"listen"`          // default 127.0.0.1:8080
	PublicURL      string         `yaml:"public_url"`      // required
	Prefix         string         `yaml:"prefix"`          // default /bff
	AdminListen    string         `yaml:"admin_listen"`    // default 127.0.0.1:9090
	AdminToken     session.Secret `yaml:"admin_token"`     // required when admin_listen is not on the loopback interface
	TrustedProxies []string       `yaml:"trusted_proxies"` // CIDRs
	ShutdownGrace  time.Duration  `yaml:"shutdown_grace"`  // default 30s
	TLS            tlsConfig      `yaml:"tls"`
	Limits         limitsConfig   `yaml:"limits"`
}

type limitsConfig struct {
	BodyMinRate byteRate        `yaml:"body_min_rate"` // default 240B/s
	Logins      rateLimitConfig `yaml:"logins"`        // default 4/s and 40
}

type rateLimitConfig struct {
	Rate  eventRate `yaml:"rate"`  // such as 4/s or 30/m
	Burst burstSize `yaml:"burst"` // at once
}

// eventRate is how often something may happen in a second, written as 4/s, 30/m
// or 100/h.
type eventRate float64

// String returns the rate as it can be written in the file.
func (r eventRate) String() string { return strconv.FormatFloat(float64(r), 'g', -1, 64) + "/s" }

// MarshalText returns the rate as it can be written in the file, for the log.
func (r eventRate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// burstSize is a number of events, one or more.
type burstSize int

type tlsConfig struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

type oidcConfig struct {
	Issuer       string         `yaml:"issuer"`        // required
	ClientID     string         `yaml:"client_id"`     // required
	ClientSecret session.Secret `yaml:"client_secret"` // required
	ClientAuth   string         `yaml:"client_auth"`   // default client_secret_basic
	Scopes       []string       `yaml:"scopes"`        // default openid, profile, email, offline_access

	ClientKey               session.Secret    `yaml:"client_key"`                // PEM of one key or several: the first signs, all are published
	ClientCertFile          string            `yaml:"client_cert_file"`          // PEM of the certificate for the first key
	ClientAssertionAudience string            `yaml:"client_assertion_audience"` // default: the issuer
	TrustedAudiences        []string          `yaml:"trusted_audiences"`
	CAFile                  string            `yaml:"ca_file"` // PEM; default: the system's
	Profile                 string            `yaml:"profile"` // fapi2
	Resource                []string          `yaml:"resource"`
	Audience                string            `yaml:"audience"`
	AuthorizationParameters map[string]string `yaml:"authorization_parameters"`
	PushedRequests          string            `yaml:"pushed_requests"`       // default auto
	SignRequests            bool              `yaml:"sign_requests"`         // default false
	ResponseMode            string            `yaml:"response_mode"`         // default query
	SenderConstraint        string            `yaml:"sender_constraint"`     // dpop or mtls; default: none
	UserInfo                bool              `yaml:"userinfo"`              // default false
	Wait                    time.Duration     `yaml:"wait"`                  // default 5s
	AccessTokenLifetime     time.Duration     `yaml:"access_token_lifetime"` // default 5m
	IDTokenAlg              string            `yaml:"id_token_alg"`          // default: any that the provider lists
	LogoutURL               string            `yaml:"logout_url"`            // default: what the provider announces
	LogoutRedirectParameter string            `yaml:"logout_redirect_parameter"`
}

type storeConfig struct {
	URL    session.Secret `yaml:"url"`     // may hold a password; default memory:
	Prefix string         `yaml:"prefix"`  // default cloakroom:
	CAFile string         `yaml:"ca_file"` // PEM; default: the system's

	CertFile     string `yaml:"cert_file"` // PEM, of the client
	KeyFile      string `yaml:"key_file"`
	PasswordFile string `yaml:"password_file"` // read for each new connection
}

type sessionConfig struct {
	Keys         []session.Secret `yaml:"keys"`          // base64 of 32 bytes each; required with a store that outlives the process
	IdleTimeout  time.Duration    `yaml:"idle_timeout"`  // default 30m
	MaxLifetime  time.Duration    `yaml:"max_lifetime"`  // default 12h
	RefreshAhead time.Duration    `yaml:"refresh_ahead"` // default 1m
	CacheMaxAge  time.Duration    `yaml:"cache_max_age"` // default 5s
	MaxPerUser   int              `yaml:"max_per_user"`  // default 0: any number
	Cookie       cookieConfig     `yaml:"cookie"`
	Claims       claimsConfig     `yaml:"claims"`
	KeepStorage  bool             `yaml:"keep_storage"` // default false
}

type claimsConfig struct {
	Allow []string          `yaml:"allow"` // what the app may know; default: all
	Map   map[string]string `yaml:"map"`   // name: where the claim is, such as realm_access.roles
}

type cookieConfig struct {
	SameSite string `yaml:"same_site"` // strict, the default, or lax
}

type routeConfig struct {
	Path         string              `yaml:"path"`
	Upstream     []string            `yaml:"upstream"` // one address or several
	UpstreamTLS  upstreamTLSConfig   `yaml:"upstream_tls"`
	StripPrefix  bool                `yaml:"strip_prefix"`
	Methods      []string            `yaml:"methods"` // default: all
	Token        string              `yaml:"token"`
	Resource     string              `yaml:"resource"`
	Audience     string              `yaml:"audience"`
	Scopes       []string            `yaml:"scopes"`
	Grant        string              `yaml:"grant"` // default refresh-token
	CSRF         string              `yaml:"csrf"`  // default auto
	AcceptBearer *acceptBearerConfig `yaml:"accept_bearer"`

	Documents      string            `yaml:"documents"`       // allow; default: they are sandboxed
	EncodedSlashes string            `yaml:"encoded_slashes"` // pass; default: they are refused
	HeadersJSON    map[string]string `yaml:"headers_json"`    // name of a header: name of a claim, which is sent as JSON

	Timeouts timeoutsConfig    `yaml:"timeouts"`
	MaxBody  byteSize          `yaml:"max_body"` // default: any
	Retry    string            `yaml:"retry"`    // once, the default, or never
	Headers  map[string]string `yaml:"headers"`  // name of a header: name of a claim
	Require  requireConfig     `yaml:"require"`
}

// acceptBearerConfig says which access tokens callers may bring themselves.
type acceptBearerConfig struct {
	Issuer               string   `yaml:"issuer"`  // default oidc.issuer
	CAFile               string   `yaml:"ca_file"` // PEM, of the issuer; default: oidc.ca_file for oidc.issuer, otherwise the system's
	Audience             string   `yaml:"audience"`
	Scopes               []string `yaml:"scopes"`     // all of them are needed; default: none is
	Clients              []string `yaml:"clients"`    // default: any
	Algorithms           []string `yaml:"algorithms"` // default RS256, PS256, ES256, EdDSA, Ed25519
	InsecureAllowAnyType bool     `yaml:"insecure_allow_any_type"`
}

type upstreamTLSConfig struct {
	CAFile   string `yaml:"ca_file"`   // PEM; default: the system's
	CertFile string `yaml:"cert_file"` // PEM, of the client
	KeyFile  string `yaml:"key_file"`
}

type timeoutsConfig struct {
	Connect        time.Duration `yaml:"connect"`         // default 10s
	ResponseHeader time.Duration `yaml:"response_header"` // default 1m
	Idle           time.Duration `yaml:"idle"`            // default: never
}

type requireConfig struct {
	Scopes []string            `yaml:"scopes"`
	Claims map[string][]string `yaml:"claims"` // name: one value or several, one of which is enough
	ACR    []string            `yaml:"acr"`
	MaxAge time.Duration       `yaml:"max_age"`
}

// byteSize is a number of bytes, written with a unit or without.
type byteSize int64

// byteRate is a number of bytes a second, such as 240B/s; noRate is none.
type byteRate int64

const noRate byteRate = -1

type frontendConfig struct {
	Dir string `yaml:"dir"`
}

// configError is every mistake in a configuration, one line each. The command ends with status 2.
type configError struct{ mistakes []string }

func (e *configError) Error() string { return strings.Join(e.mistakes, "\n") }

// bothMistakes joins the mistakes that were found when a configuration was read with those in what could be read of it. A key that could not be read
// is not also missing.
func bothMistakes(read, checked error) error {
	var first, second *configError
	if !errors.As(read, &first) {
		return checked
	}
	if !errors.As(checked, &second) {
		return read
	}
	all := slices.Clone(first.mistakes)
	for _, line := range second.mistakes {
		key, _, _ := strings.Cut(line, ":")
		if !slices.ContainsFunc(first.mistakes, func(other string) bool { return strings.Contains(other, key) }) {
			all = append(all, line)
		}
	}
	return &configError{all}
}

func (c *config) setDefaults() {
	c.Server.Listen = cmp.Or(c.Server.Listen, "127.0.0.1:8080")
	c.Server.AdminListen = cmp.Or(c.Server.AdminListen, "127.0.0.1:9090")
	c.Server.ShutdownGrace = cmp.Or(c.Server.ShutdownGrace, 30*time.Second)
	c.Server.Prefix = cmp.Or(c.Server.Prefix, "/bff")
	c.OIDC.ClientAuth = cmp.Or(c.OIDC.ClientAuth, "client_secret_basic")
	c.Store.URL = cmp.Or(c.Store.URL, "memory:")
	c.Store.Prefix = cmp.Or(c.Store.Prefix, "cloakroom:")
	c.Session.IdleTimeout = cmp.Or(c.Session.IdleTimeout, 30*time.Minute)
	c.Session.MaxLifetime = cmp.Or(c.Session.MaxLifetime, 12*time.Hour)
	c.Session.RefreshAhead = cmp.Or(c.Session.RefreshAhead, time.Minute)
	c.OIDC.Wait = cmp.Or(c.OIDC.Wait, 5*time.Second)
	c.OIDC.AccessTokenLifetime = cmp.Or(c.OIDC.AccessTokenLifetime, 5*time.Minute)
	c.Session.CacheMaxAge = cmp.Or(c.Session.CacheMaxAge, 5*time.Second)
	c.Session.Cookie.SameSite = cmp.Or(c.Session.Cookie.SameSite, "strict")
}

// keyOf maps a field of the packages' Configs to the key it is configured by, for errors that an operator reads.
func keyOf(field string) string {
	name, index, indexed := strings.Cut(field, "[")
	if indexed {
		index = "[" + index
	}
	key, ok := map[string]string{
		"PublicURL": "server.public_url", "Prefix": "server.prefix",
		"Provider.ClientKeys": "oidc.client_key", "Provider.ClientCertificate": "oidc.client_cert_file", "Provider.AssertionAudience": "oidc.client_assertion_audience",
		"Provider.Resources": "oidc.resource", "Provider.Parameters": "oidc.authorization_parameters",
		"Provider.IDTokenAlg": "oidc.id_token_alg",
		"Claims.Allow":        "session.claims.allow", "Claims.Map": "session.claims.map",
		"Wait": "oidc.wait", "AccessTokenLifetime": "oidc.access_token_lifetime",
		"Keys": "session.keys", "IdleTimeout": "session.idle_timeout", "MaxLifetime": "session.max_lifetime", "RefreshAhead": "session.refresh_ahead",
		"CacheMaxAge": "session.cache_max_age", "MaxPerUser": "session.max_per_user",
		"Routes": "routes",
	}[name]
	if of, isProviders := strings.CutPrefix(name, "Provider."); !ok && isProviders {
		key, ok = "oidc."+snakeCase(of), true
	}
	if strings.HasPrefix(name, "Limits.") {
		key, ok = "server."+snakeCase(name), true
	}
	if !ok {
		return field
	}
	return key + snakeCase(index)
}

// snakeCase writes a name in Go as a key: "[0].MaxBody" as "[0].max_body".
func snakeCase(name string) string {
	var key strings.Builder
	for i, c := range name {
		if i > 0 && unicode.IsUpper(c) && unicode.IsLower(rune(name[i-1])) {
			key.WriteByte('_')
		}
		key.WriteRune(unicode.ToLower(c))
	}
	return key.String()
}

// explain turns the joined errors of a package's constructor into lines with keys.
func explain(err error) []string {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var lines []string
		for _, e := range joined.Unwrap() {
			lines = append(lines, explain(e)...)
		}
		return lines
	}
	var field *session.FieldError
	if errors.As(err, &field) {
		return []string{keyOf(field.Field) + ": " + field.Err.Error()}
	}
	return []string{err.Error()}
}

// sessionKeys decodes session.keys.
func (c *config) sessionKeys() ([][]byte, []string) {
	var keys [][]byte
	var mistakes []string
	for i, k := range c.Session.Keys {
		b, err := decodeBase64(k.Reveal())
		if err != nil || len(b) != 32 {
			mistakes = append(mistakes, fmt.Sprintf("session.keys[%d]: [redacted] is not the base64 of 32 bytes; cloakroom keygen prints one that is", i))
			continue
		}
		if j := slices.IndexFunc(keys, func(other []byte) bool { return bytes.Equal(other, b) }); j >= 0 {
			mistakes = append(mistakes, fmt.Sprintf("session.keys[%d]: [redacted] is a key that is listed before; each key is listed once", i))
			continue
		}
		if why := notRandom(b); why != "" {
			mistakes = append(mistakes, fmt.Sprintf("session.keys[%d]: [redacted] is not a secret: %s; cloakroom keygen prints one that is", i, why))
			continue
		}
		keys = append(keys, b)
	}
	return keys, mistakes
}

// notRandom returns what shows that a key was not made at random; empty if
// nothing does. Of 32 random bytes fewer than 8 are different with a
// probability of 10^-36.
func notRandom(key []byte) string {
	different := make(map[byte]bool)
	steps := make(map[byte]bool)
	for i, b := range key {
		different[b] = true
		if i > 0 {
			steps[b-key[i-1]] = true
		}
	}
	switch {
	case len(different) == 1:
		return fmt.Sprintf("all bytes are 0x%02x", key[0])
	case len(steps) == 1:
		return "its bytes are counted up or down"
	case len(different) < 8:
		return fmt.Sprintf("it has %d different bytes", len(different))
	}
	return ""
}

// decodeBase64 takes both alphabets, with padding or without.
func decodeBase64(text string) ([]byte, error) {
	text = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(text), "=")
	return base64.RawStdEncoding.DecodeString(text)
}

// routes makes the routes, and reads the files that they name.
func (c *config) routes(log *slog.Logger) ([]bff.Route, []string) {
	var routes []bff.Route
	var mistakes []string
	for i, r := range c.Routes {
		mistake := func(key, format string, args ...any) {
			mistakes = append(mistakes, fmt.Sprintf("routes[%d].%s: ", i, key)+fmt.Sprintf(format, args...))
		}
		retry, ok := map[string]bool{"": true, "once": true, "true": true, "never": false, "false": false}[r.Retry]
		if !ok {
			mistake("retry", "%q is neither once nor never", r.Retry)
		}
		secure, err := r.UpstreamTLS.load()
		if err != nil {
			mistake("upstream_tls", "%v", err)
		}
		if secure != nil && !slices.ContainsFunc(r.Upstream, func(u string) bool { return strings.HasPrefix(u, "https:") }) {
			mistake("upstream_tls", "no upstream of the route is https")
		}
		accept, wrong := c.acceptBearer(r.AcceptBearer, log)
		for _, line := range wrong {
			mistake("accept_bearer", "%s", line)
		}
		routes = append(routes, bff.Route{
			Path: r.Path, Upstream: r.Upstream, TLS: secure, StripPrefix: r.StripPrefix, Methods: r.Methods, Token: r.Token, CSRF: r.CSRF, AcceptBearer: accept,
			Documents: r.Documents, EncodedSlashes: r.EncodedSlashes, HeadersJSON: r.HeadersJSON,
			Resource: r.Resource, Audience: r.Audience, Scopes: r.Scopes, Grant: r.Grant,
			Timeouts: bff.Timeouts(r.Timeouts), MaxBody: int64(r.MaxBody), NoRetry: !retry, Headers: r.Headers, Require: bff.Require(r.Require),
		})
	}
	return routes, mistakes
}

// acceptBearer makes what lets requests through that bring a token of their own.
func (c *config) acceptBearer(a *acceptBearerConfig, log *slog.Logger) (func(http.Handler) http.Handler, []string) {
	if a == nil {
		return nil, nil
	}
	of := *a
	of.Issuer = cmp.Or(of.Issuer, c.OIDC.Issuer)
	if of.Issuer == c.OIDC.Issuer {
		of.CAFile = cmp.Or(of.CAFile, c.OIDC.CAFile)
	}
	verifier, mistakes := of.verifier(c.Server.PublicURL, log)
	for _, scope := range of.Scopes {
		if scope == "" || strings.ContainsAny(scope, " \"\\") {
			mistakes = append(mistakes, fmt.Sprintf("scopes: %q is not one scope", scope))
		}
	}
	if len(mistakes) > 0 {
		return nil, mistakes
	}
	if len(of.Scopes) == 0 {
		return verifier.Handler, nil
	}
	return func(next http.Handler) http.Handler { return verifier.Handler(bearer.Require(of.Scopes...)(next)) }, nil
}

// verifier makes a verifier for tokens that come to an origin, or to none, and says what is wrong with the configuration.
func (a *acceptBearerConfig) verifier(origin string, log *slog.Logger) (*bearer.Verifier, []string) {
	var mistakes []string
	roots, err := certPool(a.CAFile)
	if err != nil {
		mistakes = append(mistakes, "ca_file: "+err.Error())
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	verifier, err := bearer.NewVerifier(bearer.Config{
		Issuer: a.Issuer, Audience: a.Audience, Clients: a.Clients, Algorithms: a.Algorithms, InsecureAllowAnyType: a.InsecureAllowAnyType,
		Origin: origin, HTTPClient: &http.Client{Transport: transport}, Logger: log,
	})
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			field, text, _ := strings.Cut(line, ":")
			mistakes = append(mistakes, snakeCase(field)+":"+text)
		}
	}
	return verifier, mistakes
}

// provider makes what is said of the provider, and reads the files that are named there.
func (c *config) provider() (bff.ProviderConfig, []string) {
	o := c.OIDC
	var mistakes []string
	mistake := func(key, format string, args ...any) {
		mistakes = append(mistakes, "oidc."+key+": "+fmt.Sprintf(format, args...))
	}
	p := bff.ProviderConfig{
		Issuer: o.Issuer, ClientID: o.ClientID, ClientSecret: o.ClientSecret, ClientAuth: o.ClientAuth, Scopes: o.Scopes, AssertionAudience: o.ClientAssertionAudience, TrustedAudiences: o.TrustedAudiences,
		Resources: o.Resource, Audience: o.Audience, Parameters: o.AuthorizationParameters, PushedRequests: o.PushedRequests, SignRequests: o.SignRequests,
		ResponseMode: o.ResponseMode, SenderConstraint: o.SenderConstraint, UserInfo: o.UserInfo, IDTokenAlg: o.IDTokenAlg, Wait: o.Wait, AccessTokenLifetime: o.AccessTokenLifetime, FAPI2: o.Profile == "fapi2",
		LogoutURL: o.LogoutURL, LogoutRedirectParameter: o.LogoutRedirectParameter,
	}
	if o.Profile != "" && o.Profile != "fapi2" {
		mistake("profile", "%q is none; there is fapi2", o.Profile)
	}
	var err error
	if p.RootCAs, err = certPool(o.CAFile); err != nil {
		mistake("ca_file", "%v", err)
	}
	if p.ClientKeys, err = parseKeys([]byte(o.ClientKey.Reveal())); err != nil {
		mistake("client_key", "[redacted] %v", err)
	}
	switch {
	case o.ClientCertFile == "":
	case len(p.ClientKeys) == 0:
		if err == nil {
			mistake("client_key", "missing; client_cert_file is the certificate for it")
		}
	default:
		pem, err := os.ReadFile(o.ClientCertFile)
		if err != nil {
			mistake("client_cert_file", "%v", err)
			break
		}
		cert, err := tls.X509KeyPair(pem, []byte(o.ClientKey.Reveal()))
		if err != nil {
			mistake("client_cert_file", "it is not a certificate for the first key in client_key: %v", err)
			break
		}
		p.ClientCertificate = &cert
	}
	return p, mistakes
}

// parseKeys reads the private keys in a text in PEM: PKCS #8, PKCS #1 or SEC 1.
func parseKeys(text []byte) ([]crypto.Signer, error) {
	var keys []crypto.Signer
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			if len(bytes.TrimSpace(text)) > 0 {
				return nil, errors.New("is not private keys in PEM")
			}
			return keys, nil
		}
		text = rest
		if block.Type == "EC PARAMETERS" { // openssl ecparam writes them before the key, which has them too
			continue
		}
		var key any
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if block.Type == "RSA PRIVATE KEY" {
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		} else if block.Type == "EC PRIVATE KEY" {
			key, err = x509.ParseECPrivateKey(block.Bytes)
		}
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, fmt.Errorf("holds a PEM block of type %q that is not a private key without a password", block.Type)
		}
		keys = append(keys, signer)
	}
}

// load reads the files; nil where none is named.
func (t upstreamTLSConfig) load() (*tls.Config, error) {
	if t == (upstreamTLSConfig{}) {
		return nil, nil
	}
	roots, err := certPool(t.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	cfg := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if t.CertFile != "" || t.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file and key_file: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

// trustedProxies parses server.trusted_proxies. A single address is a network of one.
func (c *config) trustedProxies() ([]netip.Prefix, []string) {
	var proxies []netip.Prefix
	var mistakes []string
	for i, text := range c.Server.TrustedProxies {
		p, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		switch {
		case err != nil:
			mistakes = append(mistakes, fmt.Sprintf("server.trusted_proxies[%d]: %q is not a network such as 10.0.0.0/8", i, text))
		case p.Bits() == 0:
			mistakes = append(mistakes, fmt.Sprintf("server.trusted_proxies[%d]: %q would let everybody say who they are", i, text))
		default:
			proxies = append(proxies, p)
		}
	}
	return proxies, mistakes
}

// warnings are settings that are legal and dangerous.
func (c *config) warnings() []string {
	proxies, _ := c.trustedProxies()
	var all []string
	if trustsTheWorld(proxies) {
		all = append(all, fmt.Sprintf("server.trusted_proxies: %q covers much of the internet, where anybody could name any client address; name your proxies alone", c.Server.TrustedProxies))
	}
	return all
}

// notGlobal are networks that do not belong to the internet (RFC 6890).
var notGlobal = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("::1/128"),
}

// trustsTheWorld reports whether networks cover more of the internet than one
// operator has: a 64th of its IPv4 or an IPv6 network larger than a /20.
func trustsTheWorld(proxies []netip.Prefix) bool {
	var addresses uint64
	for _, p := range proxies {
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				return true
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		inside := func(n netip.Prefix) bool { return n.Bits() <= p.Bits() && n.Contains(p.Addr()) }
		switch {
		case slices.ContainsFunc(notGlobal, inside):
		case p.Addr().Is4():
			addresses += 1 << (32 - p.Bits())
		case p.Bits() < 20:
			return true
		}
	}
	return addresses >= 1<<26
}

// checkListeners looks at the addresses to listen on.
func (c *config) checkListeners() []string {
	var mistakes []string
	for key, addr := range map[string]string{"server.listen": c.Server.Listen, "server.admin_listen": c.Server.AdminListen} {
		if _, err := net.ResolveTCPAddr("tcp", addr); err != nil {
			mistakes = append(mistakes, fmt.Sprintf("%s: %q is not an address such as 127.0.0.1:8080", key, addr))
		}
	}
	if host, _, err := net.SplitHostPort(c.Server.AdminListen); err == nil && c.Server.AdminToken == "" {
		if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
			mistakes = append(mistakes, fmt.Sprintf("server.admin_token: missing, and server.admin_listen %q is not on the loopback interface", c.Server.AdminListen))
		}
	}
	if (c.Server.TLS.CertFile == "") != (c.Server.TLS.KeyFile == "") {
		mistakes = append(mistakes, "server.tls: cert_file and key_file go together")
	}
	return mistakes
}

// logValue is the configuration as it is in force, without its secrets.
func (c *config) logValue() slog.Value { return logStruct(reflect.ValueOf(*c)) }

func logStruct(v reflect.Value) slog.Value {
	var attrs []slog.Attr
	for i := range v.NumField() {
		f, name := v.Field(i), tag(v.Type().Field(i))
		switch {
		case f.IsZero():
		case f.Kind() == reflect.Pointer:
			attrs = append(attrs, slog.Attr{Key: name, Value: logStruct(f.Elem())})
		case f.Kind() == reflect.Struct:
			attrs = append(attrs, slog.Attr{Key: name, Value: logStruct(f)})
		case isStructSlice(f):
			for j := range f.Len() {
				attrs = append(attrs, slog.Attr{Key: fmt.Sprintf("%s[%d]", name, j), Value: logStruct(f.Index(j))})
			}
		case f.Kind() == reflect.Slice && isSecret(f):
			attrs = append(attrs, slog.Any(name, fmt.Sprintf("%v", f.Interface())))
		case f.Type() == reflect.TypeFor[byteSize]():
			attrs = append(attrs, slog.Int64(name, f.Int()))
		case f.Type() == reflect.TypeFor[byteRate]():
			attrs = append(attrs, slog.String(name, byteRate(f.Int()).String()))
		case f.Type() == reflect.TypeFor[time.Duration]():
			attrs = append(attrs, slog.String(name, time.Duration(f.Int()).String())) // as it is written in the file
		default:
			attrs = append(attrs, slog.Any(name, f.Interface()))
		}
	}
	return slog.GroupValue(attrs...)
}
