package oidc

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/oauth2"

	"github.com/cloakroom-bff/cloakroom/internal/dpop"
	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
	"github.com/cloakroom-bff/cloakroom/session"
)

// checkRequests validates the fields for authorization requests, and fills in
// their defaults. With FAPI2 it also enforces what the profile requires.
func checkRequests(cfg *Config, fail func(name string, value any, err error)) {
	cfg.PushedRequests = cmp.Or(cfg.PushedRequests, PushAuto)
	switch cfg.PushedRequests {
	case PushAuto, PushAlways, PushNever:
	default:
		fail("PushedRequests", cfg.PushedRequests, fmt.Errorf("%q is none of auto, always, never", cfg.PushedRequests))
	}
	cfg.ResponseMode = cmp.Or(cfg.ResponseMode, ResponseModeQuery)
	switch cfg.ResponseMode {
	case ResponseModeQuery, ResponseModeFormPost:
	default:
		fail("ResponseMode", cfg.ResponseMode, fmt.Errorf("%q is none of query, form_post", cfg.ResponseMode))
	}
	switch cfg.SenderConstraint {
	case "", SenderConstraintDPoP, SenderConstraintMTLS:
	default:
		fail("SenderConstraint", cfg.SenderConstraint, fmt.Errorf("%q is none of dpop, mtls", cfg.SenderConstraint))
	}
	if cfg.SignRequests && len(cfg.ClientKeys) == 0 {
		fail("ClientKeys", nil, errors.New("missing; signed requests are signed with it"))
	}
	if cfg.SenderConstraint == SenderConstraintMTLS && cfg.ClientCertificate == nil {
		fail("ClientCertificate", nil, errors.New("missing; mtls binds tokens to it"))
	}
	for _, resource := range cfg.Resources {
		if err := CheckResource(resource); err != nil {
			fail("Resources", resource, err)
		}
	}
	for name, value := range cfg.Parameters {
		if ownParameters[name] || name == "" || !httpguts.ValidHeaderFieldValue(name+value) {
			fail("Parameters", name, fmt.Errorf("%q is a parameter that is not to be set here", name))
		}
	}
	for _, name := range []string{"acr_values", "max_age", "prompt"} {
		if value := cfg.Parameters[name]; value != "" {
			if _, err := LoginParameters(url.Values{name: {value}}); err != nil {
				fail("Parameters", value, err)
			}
		}
	}
	if !cfg.FAPI2 {
		return
	}
	for i, key := range cfg.ClientKeys { // FAPI 2.0 5.4: PS256, ES256 and EdDSA
		if public, ok := key.Public().(*ecdsa.PublicKey); ok && public.Curve != elliptic.P256() {
			fail("ClientKeys", nil, fmt.Errorf("key %d is on the curve %s; of the curves FAPI 2.0 takes P-256 "+
				"and Ed25519", i+1, public.Curve.Params().Name))
		}
	}
	if cfg.SenderConstraint == "" {
		cfg.SenderConstraint = SenderConstraintDPoP
	}
	cfg.PushedRequests = PushAlways
	switch cfg.ClientAuth { // FAPI 2.0 5.3.3.1
	case ClientSecretBasic, ClientSecretPost, JWTFile:
		fail("ClientAuth", cfg.ClientAuth, fmt.Errorf("%s is not for FAPI 2.0, which takes private_key_jwt, "+
			"tls_client_auth and self_signed_tls_client_auth", cfg.ClientAuth))
	}
	if cfg.AssertionAudience != "" && cfg.AssertionAudience != cfg.Issuer {
		fail("AssertionAudience", cfg.AssertionAudience, errors.New("FAPI 2.0 has the issuer as the only audience"))
	}
}

// ownParameters cannot be set by Config.Parameters: this client sets them, or
// they would replace the request.
var ownParameters = map[string]bool{
	"response_type": true, "client_id": true, "redirect_uri": true, "scope": true, "state": true,
	"nonce": true, "code_challenge": true, "code_challenge_method": true,
	"response_mode": true, "resource": true, "audience": true, "dpop_jkt": true, "request": true,
	"request_uri": true, "client_secret": true,
	"client_assertion": true, "client_assertion_type": true,
}

// Demand returns the parameters of a login link, as LoginParameters returns
// them, combined with Config.Parameters. A link can only demand more than the
// configuration:
//   - max_age is the shorter of the two.
//   - acr_values are the values of the link that the configuration has too, or
//     else those of the configuration. Only the provider knows which of two
//     values is stronger.
//   - prompt has the values of both. A value other than none replaces none,
//     whichever side has it. One exception: a link with none removes the
//     consent of the configuration. Consent is there for a refresh token
//     (OpenID Connect Core, section 11), and a provider that needs it rejects
//     prompt=none anyway.
func (c *Client) Demand(link url.Values) url.Values {
	all := maps.Clone(link)
	if all == nil {
		all = make(url.Values)
	}
	if own := c.cfg.Parameters["max_age"]; own != "" {
		seconds, err := strconv.Atoi(all.Get("max_age"))
		if most, _ := strconv.Atoi(own); err != nil || most < seconds {
			all.Set("max_age", own)
		}
	}
	if own := strings.Fields(c.cfg.Parameters["acr_values"]); len(own) > 0 {
		accepted := slices.DeleteFunc(strings.Fields(all.Get("acr_values")),
			func(acr string) bool { return !slices.Contains(own, acr) })
		if len(accepted) == 0 {
			accepted = own
		}
		all.Set("acr_values", strings.Join(accepted, " "))
	}
	own, linked := strings.Fields(c.cfg.Parameters["prompt"]), strings.Fields(all.Get("prompt"))
	if all.Get("prompt") == "none" {
		own = slices.DeleteFunc(own, func(prompt string) bool { return prompt == "consent" })
	}
	if len(own) > 0 {
		both := slices.DeleteFunc(distinct(slices.Concat(own, linked)),
			func(prompt string) bool { return prompt == "none" })
		if len(both) == 0 {
			both = []string{"none"}
		}
		all.Set("prompt", strings.Join(both, " "))
	}
	return all
}

// CheckResource returns an error unless raw is an absolute URI without a
// fragment, as a resource indicator has to be (RFC 8707, section 2).
func CheckResource(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || !u.IsAbs() || strings.Contains(raw, "#") ||
		strings.ContainsFunc(raw, func(c rune) bool { return c > unicode.MaxASCII }) {
		return fmt.Errorf("%q is not an absolute URI without a fragment (RFC 8707 2)", raw)
	}
	return nil
}

// AuthorizationURL returns the URL to which the browser is sent to log in. The
// request always uses the authorization code flow with PKCE, state and nonce
// (RFC 9700, section 2.1.1). The error wraps ErrUnavailable or ErrRefused if
// the provider is the cause.
func (c *Client) AuthorizationURL(ctx context.Context, r Request) (string, error) {
	m, err := c.discovered(ctx)
	if err != nil {
		return "", err
	}
	if m.Authorization == "" || m.JWKS == "" { // only the broker's own tokens are from there
		return "", fmt.Errorf("%w: the metadata has no authorization_endpoint or no jwks_uri", ErrRefused)
	}
	q, err := c.requestParameters(m, r)
	if err != nil {
		return "", err
	}
	if c.cfg.PushedRequests == PushAlways || c.cfg.PushedRequests == PushAuto && m.Pushed != "" {
		if q, err = c.push(ctx, m, q, r); err != nil {
			return "", err
		}
	}
	u, err := url.Parse(m.Authorization)
	if err != nil {
		return "", err
	}
	query := u.Query()
	for name, values := range q {
		query[name] = values
	}
	u.RawQuery = query.Encode()
	return u.String(), nil
}

// requestParameters returns the parameters of an authorization request, or
// those of a signed one (RFC 9101).
func (c *Client) requestParameters(m *metadata, r Request) (url.Values, error) {
	q := make(url.Values)
	for name, value := range c.cfg.Parameters {
		q.Set(name, value)
	}
	for name := range r.Parameters {
		q.Set(name, r.Parameters.Get(name))
	}
	q.Set("response_type", "code")
	q.Set("client_id", c.cfg.ClientID)
	q.Set("redirect_uri", c.cfg.RedirectURI)
	q.Set("scope", strings.Join(c.scopes(), " "))
	q.Set("state", r.State)
	q.Set("nonce", r.Nonce)
	q.Set("code_challenge", oauth2.S256ChallengeFromVerifier(r.Verifier.Reveal()))
	q.Set("code_challenge_method", "S256")
	if resources := c.resources(); len(resources) > 0 {
		q["resource"] = resources
	}
	if c.cfg.Audience != "" {
		q.Set("audience", c.cfg.Audience)
	}
	if c.cfg.ResponseMode != ResponseModeQuery {
		q.Set("response_mode", string(c.cfg.ResponseMode))
	}
	if r.Key != "" { // RFC 9449 10: the code is good for the holder of the key only
		key, err := parseKey(r.Key)
		if err != nil {
			return nil, err
		}
		q.Set("dpop_jkt", dpop.Thumbprint(key))
	}
	if !c.cfg.SignRequests && !m.RequireSigned {
		return q, nil
	}
	// FAPI 2.0 Message Signing wants nbf too.
	claims := map[string]any{"iss": c.cfg.ClientID, "aud": c.cfg.Issuer,
		"nbf": time.Now().Add(-10 * time.Second).Unix()}
	for name, values := range q {
		if claims[name] = values[0]; len(values) > 1 {
			claims[name] = values
		}
	}
	if seconds, err := strconv.Atoi(q.Get("max_age")); err == nil { // RFC 9101 4: numbers are numbers
		claims["max_age"] = seconds
	}
	request, err := c.sign("oauth-authz-req+jwt", claims, m.RequestAlgorithms)
	if err != nil {
		return nil, err
	}
	// Core 6.1 wants these outside as well; the server goes by those inside.
	return url.Values{"client_id": q["client_id"], "response_type": q["response_type"], "scope": q["scope"],
		"request": {request}}, nil
}

// scopes returns the scopes to request at login, those of Targets included:
// they have to be granted then.
func (c *Client) scopes() []string {
	all := slices.Clone(c.cfg.Scopes)
	for _, key := range slices.Sorted(maps.Keys(c.targets)) {
		all = append(all, c.targets[key].Scopes...)
	}
	return distinct(all)
}

// resources returns the resource indicators to request at login.
func (c *Client) resources() []string {
	all := slices.Clone(c.cfg.Resources)
	for _, key := range slices.Sorted(maps.Keys(c.targets)) {
		if t := c.targets[key]; t.Resource != "" && !t.Exchange {
			all = append(all, t.Resource)
		}
	}
	return distinct(all)
}

// distinct returns all without repetitions, in the order of first occurrence.
func distinct(all []string) []string {
	var seen []string
	for _, s := range all {
		if !slices.Contains(seen, s) {
			seen = append(seen, s)
		}
	}
	return seen
}

// push sends a pushed authorization request, and returns the parameters that
// refer to it (RFC 9126, section 2).
func (c *Client) push(ctx context.Context, m *metadata, q url.Values, r Request) (url.Values, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.MaxWait())
	defer cancel()
	if q.Has("request") {
		q = url.Values{"client_id": q["client_id"], "request": q["request"]}
	}
	key, err := parseKey(r.Key)
	if err != nil {
		return nil, err
	}
	body, err := c.post(ctx, m, formRequest{c.client, m.Pushed, q, key}, http.StatusCreated)
	if err != nil {
		return nil, parError(err)
	}
	members, err := strictjson.Parse(body)
	requestURI, _ := members.Text("request_uri")
	life, _ := members.Value("expires_in")
	if _, ok := parseSeconds(life); err != nil || requestURI == "" || !ok {
		return nil, fmt.Errorf("%w: push authorization request: the response has no request_uri with a "+
			"lifetime", ErrRefused)
	}
	return url.Values{"client_id": {c.cfg.ClientID}, "request_uri": {requestURI}}, nil
}

// parError returns the error of a login whose authorization request was not
// accepted.
func parError(err error) error {
	err = fmt.Errorf("push authorization request: %w", err)
	var refusal *Error
	switch {
	case errors.Is(err, ErrUnavailable):
		return err
	case errors.Is(err, session.ErrNoResponse), errors.As(err, &refusal) && refusal.Unavailable():
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("%w: %w", ErrRefused, err)
}
