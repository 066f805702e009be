package bearer

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/jwks"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
)

// Config configures a [Verifier]. Issuer and Audience are required.
type Config struct {
	// Issuer is the issuer identifier exactly as it appears in iss and in the
	// issuer's metadata. It is an https URL. http is allowed if the host is
	// localhost, a name below .localhost, or a loopback address.
	Issuer string

	// Audience is the identifier of this API. aud must contain it.
	Audience string

	// Clients lists the accepted values of client_id. Empty means all clients
	// of the issuer.
	Clients []string

	// Algorithms lists the accepted values of alg: RS256, RS384, RS512, PS256,
	// PS384, PS512, ES256, ES384, ES512, EdDSA, Ed25519. EdDSA and Ed25519 are
	// two names of one algorithm (RFC 9864); only the listed names are
	// accepted. Empty means RS256, PS256, ES256, EdDSA and Ed25519.
	Algorithms []string

	// Leeway is the tolerated difference between the issuer's clock and the
	// local clock, at most 60 s. Zero means 30 s.
	Leeway time.Duration

	// InsecureAllowAnyType accepts tokens whose typ is missing or is not
	// at+jwt, for issuers that set typ to JWT, or not at all, in everything
	// they sign. A typ that names another kind of JWT, such as logout+jwt, is
	// still rejected. So is a token with a claim of ID or logout tokens (nonce,
	// at_hash, c_hash, events), or one that declares itself such a token
	// (token_use, typ). An ID token without these claims is rejected only
	// because of its audience, so Audience must not be a client id.
	//
	// Such issuers usually deviate from RFC 9068 in other ways, so with this
	// option iat and jti are optional, azp, cid or appid are accepted as
	// client_id, which may be missing, and scp, a string or an array, is
	// accepted as scope.
	InsecureAllowAnyType bool

	// InsecureAllowNoAudience accepts tokens without aud, for issuers that send
	// none, such as Amazon Cognito. Clients is then required. A token of one of
	// these clients is valid at every API with this setting.
	InsecureAllowNoAudience bool

	// Introspection configures how tokens that are not JWTs are validated by
	// the issuer. Nil means that they are rejected.
	Introspection *Introspection

	// Origin is the scheme and host of this API as clients see it, such as
	// https://api.example.com. If it is set, DPoP-bound tokens are accepted
	// with a proof (RFC 9449 section 7). It must be correct, because the client
	// signs the URL of its request. Empty means the origin of Resource. If that
	// is empty too, DPoP-bound tokens are rejected.
	//
	// Each Verifier remembers the proofs it has accepted and rejects a replay.
	// Replicas of an API do not share this memory: an attacker who reads one
	// replica's traffic can replay a proof at another one for a minute.
	Origin string

	// ClientCertificate returns the certificate that the client of a request
	// has proven to possess, or nil. If it is set, certificate-bound tokens are
	// accepted (RFC 8705 section 3). Use [PeerCertificate] if this program
	// terminates TLS. Nil means that certificate-bound tokens are rejected.
	ClientCertificate func(*http.Request) *x509.Certificate

	// RequireBound rejects tokens that are not bound to their sender. A stolen
	// token of that kind can be used by anyone.
	RequireBound bool

	// Resource is the resource identifier of this API (RFC 9728), an https URL.
	// [Verifier.Metadata] serves the metadata for it, and challenges refer to
	// that metadata. Empty means no metadata.
	Resource string

	// Scopes lists the scopes in the metadata.
	Scopes []string

	// Realm is the realm parameter of challenges (RFC 9110 section 11.5). Empty
	// means none.
	Realm string

	// HTTPClient fetches the issuer's metadata and keys. Its CheckRedirect is
	// replaced: only redirects to the same host are followed. Nil means a
	// client with http.DefaultTransport. Every fetch times out after 10 s.
	HTTPClient *http.Client

	// Logger receives failures to fetch keys and the recovery, and at debug
	// level the reason for each rejected request. Tokens are never logged. Nil
	// means slog.Default().
	Logger *slog.Logger
}

const (
	defaultLeeway = 30 * time.Second
	maxLeeway     = 60 * time.Second
)

var defaultAlgorithms = []string{"RS256", "PS256", "ES256", "EdDSA", "Ed25519"}

// ConfigError is a mistake in one field of a Config. Its fields are Key, such
// as Audience or Introspection.Endpoint, Value, which is empty for a secret,
// and Err.
type ConfigError = configerr.Error

// setDefaults replaces zero values by their defaults.
func (cfg *Config) setDefaults() {
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = defaultAlgorithms
	}
	cfg.Leeway = cmp.Or(cfg.Leeway, defaultLeeway)
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
}

// check returns the parsed Resource and Origin. The error joins a *ConfigError
// for every mistake.
func (cfg *Config) check() (resource *url.URL, origin string, err error) {
	var errs []error
	fail := func(key string, value any, err error) {
		errs = append(errs, configerr.New(key, value, err))
	}
	if err := checkIssuer(cfg.Issuer); err != nil {
		fail("Issuer", cfg.Issuer, err)
	}
	if cfg.Audience == "" {
		fail("Audience", nil, errors.New("missing"))
	}
	if cfg.InsecureAllowNoAudience && len(cfg.Clients) == 0 {
		fail("Clients", nil, errors.New("missing; required with InsecureAllowNoAudience"))
	}
	if slices.Contains(cfg.Clients, "") {
		fail("Clients", nil, errors.New("contains an empty client id"))
	}
	for _, name := range cfg.Algorithms {
		if !jwks.IsAlgorithm(name) { // none and HMAC among them (RFC 8725 sections 2.1, 3.1 and 3.2)
			fail("Algorithms", name, fmt.Errorf("%q is not an asymmetric signature algorithm such as RS256", name))
		}
	}
	if cfg.Leeway < 0 || cfg.Leeway > maxLeeway {
		fail("Leeway", cfg.Leeway, fmt.Errorf("%v is not between 0 and %v", cfg.Leeway, maxLeeway))
	}
	if resource, err = parseResource(cfg.Resource); err != nil {
		fail("Resource", cfg.Resource, err)
	}
	if origin, err = parseOrigin(cfg.Origin, resource); err != nil {
		fail("Origin", cfg.Origin, err)
	}
	if cfg.RequireBound && cfg.ClientCertificate == nil && cfg.Origin == "" && cfg.Resource == "" {
		fail("RequireBound", true,
			errors.New("requires Origin, Resource or ClientCertificate; otherwise every token is rejected"))
	}
	for _, scope := range cfg.Scopes {
		if !isScope(scope) {
			fail("Scopes", scope, fmt.Errorf("%q is not a scope", scope))
		}
	}
	if !isQuotable(cfg.Realm) {
		fail("Realm", cfg.Realm, fmt.Errorf("%q must be printable ASCII without quotes and backslashes", cfg.Realm))
	}
	if cfg.Introspection != nil {
		cfg.Introspection.check(fail)
	}
	return resource, origin, errors.Join(errs...)
}

// checkIssuer accepts an issuer identifier of RFC 8414 section 2, and also http
// on a loopback host.
func checkIssuer(raw string) error {
	if raw == "" {
		return errors.New("missing")
	}
	u, err := checkURL(raw, true)
	switch {
	case err != nil:
		return err
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(raw, "#"):
		return fmt.Errorf("%q: an issuer must not have a query or a fragment", raw)
	}
	return nil
}

// checkURL parses the URL of an issuer or of its keys. The scheme must be
// https, or http on a loopback host if plain is set.
func checkURL(raw string, plain bool) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.User != nil:
		return nil, fmt.Errorf("%q is not a URL such as https://id.example.com", raw)
	case u.Scheme == "https", u.Scheme == "http" && plain && loopback.IsHost(u.Hostname()):
		return u, nil
	case u.Scheme == "http" && plain:
		return nil, fmt.Errorf("%q: http is allowed for loopback hosts only; use https", raw)
	}
	return nil, fmt.Errorf("%q: the scheme must be https", raw)
}
