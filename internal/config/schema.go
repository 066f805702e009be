// Package config reads the configuration of the broker and creates the server
// and the store from it.
package config

import (
	"cmp"
	"errors"
	"strconv"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Config is the configuration as the operator writes it.
//
// In YAML, a key is the path of yaml tags, such as oidc.client_id. The
// environment variable of a key, such as CLOAKROOM_OIDC_CLIENT_ID, takes
// precedence. A section has a variable too, such as CLOAKROOM_SERVER_LIMITS. A
// secret can also be in a file, which the key with the suffix _file names.
// [Keys] describes every key.
type Config struct {
	Server   Server   `yaml:"server"`
	OIDC     OIDC     `yaml:"oidc"`
	Store    Store    `yaml:"store"`
	Session  Session  `yaml:"session"`
	Routes   []Route  `yaml:"routes"`
	Frontend Frontend `yaml:"frontend"`
	Log      Log      `yaml:"log"`
	Metrics  Metrics  `yaml:"metrics"`
	Tracing  Tracing  `yaml:"tracing"`

	// files are those that Load has read and those that c names, by the keys
	// that name them. The key of the file of c itself is empty.
	files map[string]string
}

// Metrics has no keys: metrics are always on the admin listener.
type Metrics struct{}

// Tracing has no keys: the environment variables of OpenTelemetry configure
// traces (see package tracing).
type Tracing struct{}

type Server struct {
	Listen         string         `yaml:"listen"`          // default 127.0.0.1:8080, in a container :8080
	PublicURL      string         `yaml:"public_url"`      // required
	Prefix         string         `yaml:"prefix"`          // default /bff
	AdminListen    string         `yaml:"admin_listen"`    // default 127.0.0.1:9090
	AdminToken     session.Secret `yaml:"admin_token"`     // required if admin_listen is not on the loopback interface
	TrustedProxies []string       `yaml:"trusted_proxies"` // CIDRs
	PageFile       string         `yaml:"page_file"`       // template; default: a built-in page
	ShutdownDelay  Delay          `yaml:"shutdown_delay"`  // default 0s, in Kubernetes 5s
	ShutdownGrace  time.Duration  `yaml:"shutdown_grace"`  // default 30s
	TLS            TLS            `yaml:"tls"`
	Limits         Limits         `yaml:"limits"`
}

type Limits struct {
	Connections int       `yaml:"connections"`   // default 0: derived from descriptors and memory
	HeaderBytes ByteSize  `yaml:"header_bytes"`  // default 64KiB
	BodyMinRate ByteRate  `yaml:"body_min_rate"` // default 240B/s
	Logins      RateLimit `yaml:"logins"`        // default 4/s and 40
}

type RateLimit struct {
	Rate  EventRate `yaml:"rate"` // such as 4/s or 30/m
	Burst BurstSize `yaml:"burst"`
}

// EventRate is a number of events per second, written as 4/s, 30/m or 100/h.
type EventRate float64

// String returns the rate as in the file.
func (r EventRate) String() string { return strconv.FormatFloat(float64(r), 'g', -1, 64) + "/s" }

// MarshalText returns the rate as in the file, for the log.
func (r EventRate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Delay is a duration that can be zero.
type Delay time.Duration

// String returns the delay as in the file.
func (d Delay) String() string { return time.Duration(d).String() }

// MarshalText returns the delay as in the file, for the log.
func (d Delay) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// BurstSize is a number of events, one or more.
type BurstSize int

type TLS struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// IsOn reports whether the public listener uses TLS.
func (t TLS) IsOn() bool { return t.CertFile != "" && t.KeyFile != "" }

type OIDC struct {
	Issuer       string         `yaml:"issuer"`        // required
	ClientID     string         `yaml:"client_id"`     // required
	ClientSecret session.Secret `yaml:"client_secret"` // required
	ClientAuth   string         `yaml:"client_auth"`   // default client_secret_basic
	Scopes       []string       `yaml:"scopes"`        // default openid, profile, email, offline_access

	// PEM; the first key signs, all are published
	ClientKey session.Secret `yaml:"client_key"`
	// PEM of the certificate for the first key
	ClientCertFile          string            `yaml:"client_cert_file"`
	ClientAssertionAudience string            `yaml:"client_assertion_audience"` // default: the issuer
	ClientAssertionFile     string            `yaml:"client_assertion_file"`     // read for each request
	ClientAssertionType     string            `yaml:"client_assertion_type"`     // default jwt-bearer
	TrustedAudiences        []string          `yaml:"trusted_audiences"`
	CAFile                  string            `yaml:"ca_file"` // PEM; default: the system's
	Profile                 string            `yaml:"profile"` // fapi2
	Resource                []string          `yaml:"resource"`
	Audience                string            `yaml:"audience"`
	AuthorizationParameters map[string]string `yaml:"authorization_parameters"`
	PromptAfterEnd          string            `yaml:"prompt_after_end"`      // default login
	PushedRequests          string            `yaml:"pushed_requests"`       // default auto
	SignRequests            bool              `yaml:"sign_requests"`         // default false
	ResponseMode            string            `yaml:"response_mode"`         // default query
	SenderConstraint        string            `yaml:"sender_constraint"`     // dpop or mtls; default: none
	UserInfo                bool              `yaml:"userinfo"`              // default false
	Wait                    time.Duration     `yaml:"wait"`                  // default 5s
	AccessTokenLifetime     time.Duration     `yaml:"access_token_lifetime"` // default 5m
	IDTokenAlg              string            `yaml:"id_token_alg"`          // default: any that the provider lists
	LogoutURL               string            `yaml:"logout_url"`            // default: from the metadata
	LogoutRedirectParameter string            `yaml:"logout_redirect_parameter"`
}

type Store struct {
	URL    session.Secret `yaml:"url"`     // may hold a password; default memory:
	Prefix string         `yaml:"prefix"`  // default cloakroom:
	CAFile string         `yaml:"ca_file"` // PEM; default: the system's

	CertFile     string `yaml:"cert_file"` // PEM, of the client
	KeyFile      string `yaml:"key_file"`
	PasswordFile string `yaml:"password_file"` // read for each new connection
}

type Session struct {
	// base64 of 32 bytes each; required unless store.url is memory:
	Keys         []session.Secret `yaml:"keys"`
	IdleTimeout  time.Duration    `yaml:"idle_timeout"`  // default 30m
	MaxLifetime  time.Duration    `yaml:"max_lifetime"`  // default 12h
	RefreshAhead time.Duration    `yaml:"refresh_ahead"` // default 1m
	CacheMaxAge  time.Duration    `yaml:"cache_max_age"` // default 5s
	MaxPerUser   int              `yaml:"max_per_user"`  // default 0: no maximum
	Cookie       Cookie           `yaml:"cookie"`
	Claims       Claims           `yaml:"claims"`
	KeepStorage  bool             `yaml:"keep_storage"` // default false
}

type Claims struct {
	Allow []string          `yaml:"allow"` // claims that the app sees; default: all
	Map   map[string]string `yaml:"map"`   // name → path of the claim, such as realm_access.roles
}

type Cookie struct {
	SameSite string `yaml:"same_site"` // strict, the default, or lax
}

type Route struct {
	Path         string        `yaml:"path"`
	Upstream     []string      `yaml:"upstream"` // one URL or several
	UpstreamTLS  UpstreamTLS   `yaml:"upstream_tls"`
	StripPrefix  bool          `yaml:"strip_prefix"`
	Methods      []string      `yaml:"methods"` // default: all
	Token        string        `yaml:"token"`
	Resource     string        `yaml:"resource"`
	Audience     string        `yaml:"audience"`
	Scopes       []string      `yaml:"scopes"`
	Grant        string        `yaml:"grant"` // default refresh-token
	CSRF         string        `yaml:"csrf"`  // default auto
	AcceptBearer *AcceptBearer `yaml:"accept_bearer"`

	Documents      string            `yaml:"documents"`       // allow; default: they are sandboxed
	EncodedSlashes string            `yaml:"encoded_slashes"` // pass; default: they are refused
	HeadersJSON    map[string]string `yaml:"headers_json"`    // header → claim, sent as JSON

	Timeouts Timeouts          `yaml:"timeouts"`
	MaxBody  ByteSize          `yaml:"max_body"` // default: any
	Retry    string            `yaml:"retry"`    // once, the default, or never
	Headers  map[string]string `yaml:"headers"`  // header → claim
	Require  Require           `yaml:"require"`
}

// AcceptBearer says which access tokens callers may bring themselves.
type AcceptBearer struct {
	Issuer               string   `yaml:"issuer"`  // default oidc.issuer
	CAFile               string   `yaml:"ca_file"` // PEM; default: oidc.ca_file for oidc.issuer, otherwise the system's
	Audience             string   `yaml:"audience"`
	Scopes               []string `yaml:"scopes"`     // all are required; default: none
	Clients              []string `yaml:"clients"`    // default: any
	Algorithms           []string `yaml:"algorithms"` // default RS256, PS256, ES256, EdDSA, Ed25519
	InsecureAllowAnyType bool     `yaml:"insecure_allow_any_type"`
}

type UpstreamTLS struct {
	CAFile   string `yaml:"ca_file"`   // PEM; default: the system's
	CertFile string `yaml:"cert_file"` // PEM, of the client
	KeyFile  string `yaml:"key_file"`
}

type Timeouts struct {
	Connect        time.Duration `yaml:"connect"`         // default 10s
	ResponseHeader time.Duration `yaml:"response_header"` // default 1m
	Idle           time.Duration `yaml:"idle"`            // default: never
}

type Require struct {
	Scopes []string            `yaml:"scopes"`
	Claims map[string][]string `yaml:"claims"` // name → accepted values
	ACR    []string            `yaml:"acr"`
	MaxAge time.Duration       `yaml:"max_age"`
}

// ByteSize is a number of bytes, written as 64KiB, 10MB or 4096.
type ByteSize int64

// ByteRate is a number of bytes per second, such as 240B/s.
type ByteRate int64

// noRate means no minimum rate. It is written as off.
const noRate ByteRate = -1

type Frontend struct {
	Dir      string `yaml:"dir"`
	URL      string `yaml:"url"`      // of a development server or a CDN, instead of dir
	Fallback string `yaml:"fallback"` // auto, the default, index or none

	CSP               map[string][]string `yaml:"csp"` // directive → sources besides the default ones
	CSPReportOnly     bool                `yaml:"csp_report_only"`
	PermissionsPolicy map[string][]string `yaml:"permissions_policy"` // feature → self, * and origins
	ReferrerPolicy    string              `yaml:"referrer_policy"`    // default no-referrer
	OpenerPolicy      string              `yaml:"opener_policy"`      // default same-origin
	HSTS              HSTS                `yaml:"hsts"`
	SourceMaps        bool                `yaml:"source_maps"` // default false
	Config            map[string]any      `yaml:"config"`      // public settings of the app
}

// HSTS configures Strict-Transport-Security. It can be written as off.
type HSTS struct {
	MaxAge            MaxAge `yaml:"max_age"`            // default 8760h
	IncludeSubdomains *bool  `yaml:"include_subdomains"` // default true
}

// MaxAge is the time for which browsers use https only. Zero means that it is
// not configured.
type MaxAge time.Duration

const (
	noHSTS     MaxAge = -1 // the header is not sent; written as hsts: off
	forgetHSTS MaxAge = -2 // browsers forget it (RFC 6797, section 6.1.1); written as 0s
)

// String returns the time as in the file.
func (a MaxAge) String() string {
	switch a {
	case noHSTS:
		return "off"
	case forgetHSTS:
		return "0s"
	}
	return time.Duration(a).String()
}

// MarshalText returns the time as in the file, for the log.
func (a MaxAge) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

type Log struct {
	Level   string   `yaml:"level"`   // error, warn, info, the default, or debug
	Format  string   `yaml:"format"`  // json, the default, or text
	Access  string   `yaml:"access"`  // all, the default, errors or none
	Exclude []string `yaml:"exclude"` // paths
	Users   string   `yaml:"users"`   // hash, the default, plain or none
	Audit   string   `yaml:"audit"`   // a file, or stdout; empty: none
}

// SetDefaults sets keys without a value to their defaults, as Load does. The
// other keys get their defaults from the packages that use them.
func (c *Config) SetDefaults() {
	c.Server.Listen = cmp.Or(c.Server.Listen, "127.0.0.1:8080")
	c.Server.AdminListen = cmp.Or(c.Server.AdminListen, "127.0.0.1:9090")
	c.Server.ShutdownGrace = cmp.Or(c.Server.ShutdownGrace, 30*time.Second)
	c.Server.Prefix = cmp.Or(c.Server.Prefix, "/bff")
	c.Server.Limits.HeaderBytes = cmp.Or(c.Server.Limits.HeaderBytes, 64<<10)
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
	c.Log.Level, c.Log.Format = cmp.Or(c.Log.Level, "info"), cmp.Or(c.Log.Format, "json")
	c.Log.Access, c.Log.Users = cmp.Or(c.Log.Access, "all"), cmp.Or(c.Log.Users, "hash")
}

// ErrNeedsRestart is wrapped by the Error of a key whose change only a restart
// applies.
var ErrNeedsRestart = errors.New("a change needs a restart")

// CheckReload reports the keys that differ between c and the configuration in
// force and need a restart. The error is an Errors.
func (c *Config) CheckReload(inForce *Config) error {
	var problems Errors
	_, storeURL := cutLogin(c.Store.URL.Reveal())
	_, storeURLInForce := cutLogin(inForce.Store.URL.Reveal())
	changed := map[string]bool{
		"server.listen":       c.Server.Listen != inForce.Server.Listen,
		"server.admin_listen": c.Server.AdminListen != inForce.Server.AdminListen,
		"server.tls":          c.Server.TLS.IsOn() != inForce.Server.TLS.IsOn(),
		"store.url":           storeURL != storeURLInForce,
		"store.prefix":        c.Store.Prefix != inForce.Store.Prefix,
		"store.ca_file":       c.Store.CAFile != inForce.Store.CAFile,
		"store.cert_file":     c.Store.CertFile != inForce.Store.CertFile,
		"store.key_file":      c.Store.KeyFile != inForce.Store.KeyFile,

		"server.limits.header_bytes": c.Server.Limits.HeaderBytes != inForce.Server.Limits.HeaderBytes,
	}
	for _, key := range append([]string{"server.tls"}, restartKeys...) {
		if changed[key] {
			problems.add(key, "%w", ErrNeedsRestart)
		}
	}
	return problems.orNil()
}
