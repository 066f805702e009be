package check

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/jwks"
	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
)

// provider is the provider and what its metadata list.
type provider struct {
	cfg     *config.Config
	client  *oidc.Client
	methods []string // of client authentication; empty: unknown
}

// checkProvider asks the provider for its metadata, and whether it accepts this
// client and its authorization requests.
func checkProvider(ctx context.Context, cfg *config.Config) []Finding {
	client, mistakes := cfg.NewProvider(discard)
	complete := len(mistakes) == 0 // otherwise it can be used for discovery only
	defer client.Close()
	p := &provider{cfg: cfg, client: client}
	discovery, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	if err := client.Discover(discovery); err != nil {
		return []Finding{p.discoveryFinding(ctx, err)}
	}
	findings := p.checkMetadata(ctx)
	switch {
	case !complete: // the mistakes were found in the file
		return findings
	case cfg.WithoutLogin():
		return append(findings, p.checkClient(ctx)...)
	case client.PushesRequests():
		return append(findings, p.checkRequest(ctx)...)
	}
	if found := p.checkClient(ctx); len(found) > 0 {
		return append(findings, found...)
	}
	return append(findings, p.checkRequest(ctx)...)
}

// discoveryFinding returns what a failed discovery means.
func (p *provider) discoveryFinding(ctx context.Context, err error) Finding {
	const key = "oidc.issuer"
	text := strings.TrimPrefix(err.Error(), "discover provider: ")
	if as[oidc.CapabilityError](err) {
		return failure("oidc", sentence("The provider does not fit the configuration: "+text),
			"Change the key of oidc that requires it, or the provider.")
	}
	if as[oidc.MetadataError](err) {
		return failure(key, sentence("The metadata of the provider cannot be used: "+text),
			"Correct the provider. Behind a proxy it has to know its public URL: for Keycloak see its options "+
				"hostname and proxy-headers.")
	}
	problem := sentence("The provider was not found: " + withoutAdvice(text))
	status, redirected := errors.AsType[*jwks.StatusError](err)
	switch causeOf(err) {
	case causeUnknownCA:
		return failure("oidc.ca_file", problem, unknownCAFix("oidc.ca_file", p.cfg.OIDC.CAFile, "the provider's"))
	case causeName:
		return failure(key, problem, "Set oidc.issuer to a host of the certificate ("+names(err)+
			"), or correct the certificate of the provider.")
	case causeExpired:
		return failure(key, problem, "Renew the provider's certificate. Check the clock of this machine too.")
	case causeNotTLS:
		return failure(key, problem, "Something else than HTTPS responds at this port: correct the port "+
			"of oidc.issuer.")
	case causeTLSVersion:
		return failure(key, problem, "Enable TLS 1.2 or a newer version at the provider.")
	case causeClientCertificate:
		return failure("oidc.client_cert_file", problem,
			"The provider refuses the TLS connection: it may require another client certificate.")
	case causeRefused, causeUnknownHost, causeTimeout, causeClosed:
		return failure(key, problem, "Correct host and port of oidc.issuer, or make the provider reachable from "+
			"this machine (DNS, firewall).")
	}
	if redirected && status.Location != "" {
		return failure(key, problem, "Set oidc.issuer to the issuer that the metadata at "+status.Location+" name.")
	}
	if other := findIssuer(ctx, p.cfg.OIDC.Issuer, p.client.HTTPClient()); other != "" {
		return failure(key, problem, "Set oidc.issuer to "+other+", to the letter.")
	}
	if redirected && status.Status >= 500 {
		return failure(key, problem, "The provider, or a proxy in front of it, has a fault: look at its log.")
	}
	return failure(key, problem, "Set oidc.issuer to the issuer that the provider documents, with its path. For "+
		"Keycloak it is https://HOST/realms/REALM.")
}

// withoutAdvice returns the text of an error without the advice in parentheses
// at its end. The fix of the finding is the advice.
func withoutAdvice(text string) string {
	if start := strings.LastIndex(text, " ("); start > 0 && strings.HasSuffix(text, ")") {
		return text[:start]
	}
	return text
}

// unknownCAFix returns what to do if the CA of a peer's certificate is unknown.
// file is the configured file with CAs, or empty.
func unknownCAFix(key, file, whose string) string {
	if file != "" {
		return fmt.Sprintf("The CA in %s has not signed it: put the CA of %s certificate into %s. An intermediate "+
			"certificate that the server does not send has the same effect.", file, whose, key)
	}
	return fmt.Sprintf("Set %s to a file in PEM with the CA of %s certificate.", key, whose)
}

// findIssuer returns an issuer near a wrong one: the one that the metadata
// there name, or the metadata for a part of its path. It returns "" if there is
// none.
func findIssuer(ctx context.Context, issuer string, client *http.Client) string {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	base := strings.TrimRight(issuer, "/")
	for range 4 {
		document, err := jwks.Get(ctx, client, base+"/.well-known/openid-configuration")
		if err == nil {
			metadata, _ := strictjson.Parse(document.Body)
			if named, _ := metadata.Text("issuer"); named != "" && named != issuer {
				return named
			}
		}
		u, err := url.Parse(base)
		if err != nil || u.Path == "" {
			break
		}
		base = base[:strings.LastIndexByte(base, '/')]
	}
	return ""
}

// clockTolerance is the difference of clocks that is not reported.
const clockTolerance = 10 * time.Second

// checkMetadata checks what the metadata and their response tell.
func (p *provider) checkMetadata(ctx context.Context) []Finding {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	from := strings.TrimSuffix(p.cfg.OIDC.Issuer, "/") + "/.well-known/openid-configuration"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil
	}
	sent := time.Now()
	resp, err := p.client.HTTPClient().Do(req)
	if err != nil {
		return nil // discovery has succeeded a moment ago
	}
	defer resp.Body.Close()
	findings := checkClock(resp.Header, sent, time.Now())
	if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
		findings = append(findings, expires("oidc.issuer", "the provider", resp.TLS.PeerCertificates[0],
			"Have it renewed. After that time sign-in fails.")...)
	}
	metadata, _, err := jwks.Discover(ctx, p.client.HTTPClient(), p.cfg.OIDC.Issuer)
	if err != nil {
		return findings
	}
	p.methods, _ = metadata.Texts("token_endpoint_auth_methods_supported") // anything else lists none
	if !p.cfg.WithoutLogin() {
		findings = append(findings, p.checkRefreshToken(metadata)...)
	}
	return findings
}

// checkClock compares the clock of this machine with the provider's. sent and
// received are when the response with the header was requested and arrived.
func checkClock(header http.Header, sent, received time.Time) []Finding {
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		return nil
	}
	there := date.Add(responseAge(header))
	here := sent.Add(received.Sub(sent) / 2)
	skew := here.Sub(there).Round(time.Second)
	direction := "ahead of"
	if skew < 0 {
		skew, direction = -skew, "behind"
	}
	if skew <= clockTolerance {
		return nil
	}
	problem := fmt.Sprintf("The clock of this machine is %v %s the provider's.", skew, direction)
	const fix = "Synchronize both clocks by NTP (chrony, systemd-timesyncd)."
	if skew > oidc.ClockSkew {
		return []Finding{failure("oidc.issuer", problem+" Logins fail beyond "+oidc.ClockSkew.String()+".", fix)}
	}
	return []Finding{warning("oidc.issuer", problem, fix)}
}

// maxAge is the longest Age that checkClock believes.
const maxAge = 365 * 24 * time.Hour

// responseAge returns the Age of a cached response (RFC 9111, section 5.1). It
// is zero if there is none that can be right. Of several values the first
// counts.
func responseAge(header http.Header) time.Duration {
	first, _, _ := strings.Cut(header.Get("Age"), ",")
	seconds, err := strconv.ParseUint(strings.TrimSpace(first), 10, 31)
	if age := time.Duration(seconds) * time.Second; err == nil && age <= maxAge {
		return age
	}
	return 0
}

// checkRefreshToken checks whether sessions can expect a refresh token, and
// whether it is rotated.
func (p *provider) checkRefreshToken(metadata strictjson.Object) []Finding {
	const key = "oidc.scopes"
	grants, _ := metadata.Texts("grant_types_supported")
	scopes, _ := metadata.Texts("scopes_supported")
	requested := p.client.Config().Scopes
	asks := slices.Contains(requested, "offline_access")
	offline := p.cfg.OIDC.AuthorizationParameters["access_type"] == "offline"
	u, err := url.Parse(p.cfg.OIDC.Issuer)
	if err != nil {
		return nil
	}
	const consequence = "Sessions end with their access token."
	var findings []Finding
	switch {
	case len(grants) > 0 && !slices.Contains(grants, "refresh_token"):
		findings = append(findings, warning(key,
			"The provider does not list the grant type refresh_token. Expect no refresh token. "+consequence,
			"Allow refresh tokens at the provider."))
	case len(scopes) > 0 && !slices.Contains(scopes, "offline_access") && asks && !offline && !isKeycloak(u):
		fix := "Allow offline_access for this client at the provider, or see its documentation for refresh tokens."
		if u.Host == "accounts.google.com" {
			fix = "Set oidc.authorization_parameters to {access_type: offline, prompt: consent}."
		}
		findings = append(findings, warning(key,
			"The provider does not list the scope offline_access. It may issue no refresh token. "+consequence, fix))
	case slices.Contains(scopes, "offline_access") && !asks && !offline && !isKeycloak(u):
		findings = append(findings, warning(key,
			"oidc.scopes lacks offline_access. The provider may issue no refresh token. "+consequence,
			"Add offline_access to oidc.scopes."))
	}
	if slices.ContainsFunc(withoutRotation, func(re *regexp.Regexp) bool { return re.MatchString(u.Host) }) &&
		p.cfg.OIDC.SenderConstraint == "" {
		findings = append(findings, warning("oidc.issuer",
			"This provider does not rotate refresh tokens by default: a stolen one stays valid.",
			"Turn rotation on at the provider if it has it. Keep oidc.client_secret and session.keys apart."))
	}
	return findings
}

// isKeycloak reports whether an issuer looks like a realm of Keycloak, which
// issues refresh tokens without offline_access.
func isKeycloak(issuer *url.URL) bool { return strings.Contains(issuer.Path, "/realms/") }

// withoutRotation are the hosts of providers that do not rotate refresh tokens
// by default. Metadata do not tell.
var withoutRotation = []*regexp.Regexp{
	regexp.MustCompile(`^accounts\.google\.com$`),
	regexp.MustCompile(`^cognito-idp\.[a-z0-9-]+\.amazonaws\.com$`),
}

// checkClient checks the client authentication with a made-up code.
func (p *provider) checkClient(ctx context.Context) []Finding {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	err := p.client.CheckClient(ctx)
	if err == nil {
		return nil
	}
	refusal, ok := errors.AsType[*oidc.Error](err)
	switch {
	case !ok:
		return []Finding{unreachable("The token endpoint", err)}
	case isRedirectURI(refusal):
		return []Finding{p.redirectFinding(refusal)}
	case refusal.Code == "invalid_request":
		return []Finding{warning("oidc.client_secret", fmt.Sprintf("Whether the provider accepts the client was not "+
			"found out: it responded to a made-up code neither with invalid_grant nor with "+
			"invalid_client. %v.", refusal),
			"Sign in once, and read the log if that fails.")}
	}
	return []Finding{p.refusalFinding("The provider refused a token request", refusal)}
}

// checkRequest checks an authorization request.
func (p *provider) checkRequest(ctx context.Context) []Finding {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	err := p.client.CheckRequest(ctx)
	if err == nil {
		return nil
	}
	refusal, ok := errors.AsType[*oidc.Error](err)
	switch {
	case !ok:
		return []Finding{unreachable("The authorization endpoint", err)}
	case isRedirectURI(refusal), refusal.Code == "" && !refusal.Unavailable() && !p.client.PushesRequests():
		return []Finding{p.redirectFinding(refusal)}
	}
	return []Finding{p.refusalFinding("The provider refused an authorization request", refusal)}
}

func unreachable(endpoint string, err error) Finding {
	return failure("oidc.issuer", sentence(endpoint+" did not respond: "+err.Error()),
		"Make all endpoints of the provider's metadata reachable from this machine.")
}

// isRedirectURI reports whether a refusal is about the redirect URI. No
// standard has an error code for that, so providers write it in the
// description.
func isRedirectURI(e *oidc.Error) bool {
	text := strings.ToLower(e.Code + " " + e.Description)
	return strings.Contains(text, "redirect_uri") || strings.Contains(text, "redirect uri")
}

func (p *provider) redirectFinding(e *oidc.Error) Finding {
	return failure("server.public_url",
		fmt.Sprintf("The provider does not accept the redirect URI (redirect_uri) %s: %v.", p.cfg.RedirectURI(), e),
		fmt.Sprintf("Register %s as a redirect URI of the client %q at the provider, or correct server.public_url.",
			p.cfg.RedirectURI(), p.cfg.OIDC.ClientID))
}

// refusalFinding returns what an error response means.
func (p *provider) refusalFinding(what string, e *oidc.Error) Finding {
	problem := fmt.Sprintf("%s: %v.", what, e)
	switch {
	case e.Unavailable():
		return failure("oidc.issuer", problem, "The provider has a fault, or limits requests: look at its log.")
	case e.Code == "invalid_client", e.Status == http.StatusUnauthorized:
		return p.clientFinding(problem)
	case e.Code == "invalid_scope", strings.Contains(strings.ToLower(e.Description), "invalid scope"):
		return failure("oidc.scopes", problem, fmt.Sprintf(
			"Allow the client %q at the provider all scopes in oidc.scopes and in routes, or remove those "+
				"it may not have.",
			p.cfg.OIDC.ClientID))
	case e.Code == "invalid_target":
		return failure("oidc.resource", problem,
			"Register the resources in oidc.resource and in routes at the provider.")
	case e.Code == "unauthorized_client", e.Code == "unsupported_grant_type":
		return failure("oidc.client_id", problem, fmt.Sprintf(
			"Allow the client %q the authorization code flow (confidential client) at the provider.",
			p.cfg.OIDC.ClientID))
	case e.Status == http.StatusForbidden:
		return p.clientFinding(problem)
	}
	return failure("oidc", problem, "The provider's log says more. Compare the client's settings there with oidc.")
}

// clientFinding returns the finding for a client that the provider does not
// accept.
func (p *provider) clientFinding(problem string) Finding {
	id := p.cfg.OIDC.ClientID
	if len(p.methods) > 0 && !slices.Contains(p.methods, p.cfg.OIDC.ClientAuth) && p.cfg.OIDC.ClientAuth != "jwt_file" {
		return failure("oidc.client_auth", problem+" It does not list "+p.cfg.OIDC.ClientAuth+".",
			"Set oidc.client_auth to one that it lists: "+strings.Join(p.methods, ", ")+".")
	}
	switch p.cfg.OIDC.ClientAuth {
	case "private_key_jwt":
		return failure("oidc.client_key", problem, fmt.Sprintf(
			"Register the public key of oidc.client_key for the client %q, or correct oidc.client_id. If the provider "+
				"reads the key from %s, the broker has to run.", id, p.cfg.Endpoint("/jwks.json")))
	case "jwt_file":
		return failure("oidc.client_assertion_file", problem, fmt.Sprintf(
			"Have the provider trust the issuer and the sub of the JWT in oidc.client_assertion_file for the client "+
				"%q, and compare its aud with what the provider expects.", id))
	case "tls_client_auth", "self_signed_tls_client_auth":
		return failure("oidc.client_cert_file", problem, fmt.Sprintf(
			"Register the certificate in oidc.client_cert_file for the client %q, or correct oidc.client_id.", id))
	}
	return failure("oidc.client_secret", problem, fmt.Sprintf(
		"Set oidc.client_secret to the secret of the client %q at the provider. Check oidc.client_id, and whether "+
			"the client is registered for %s.", id, cmp.Or(p.cfg.OIDC.ClientAuth, "client_secret_basic")))
}

// checkBearerIssuers asks the issuers of access tokens that callers bring.
func checkBearerIssuers(ctx context.Context, cfg *config.Config) []Finding {
	var steps []func() []Finding
	for i, r := range cfg.Routes {
		if r.AcceptBearer != nil && r.AcceptBearer.Issuer != "" && r.AcceptBearer.Issuer != cfg.OIDC.Issuer {
			key := fmt.Sprintf("routes[%d].accept_bearer.", i)
			steps = append(steps, func() []Finding { return checkBearerIssuer(ctx, key, r.AcceptBearer) })
		}
	}
	return sideBySide(steps)
}

// checkBearerIssuer asks one issuer. key is the prefix of its keys.
func checkBearerIssuer(ctx context.Context, key string, bearer *config.AcceptBearer) []Finding {
	client, err := bearer.HTTPClient()
	if err != nil {
		return nil // a mistake in the file, which was found
	}
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	_, _, err = jwks.Discover(ctx, client, bearer.Issuer)
	client.CloseIdleConnections()
	switch {
	case err == nil:
		return nil
	case causeOf(err) == causeUnknownCA:
		return []Finding{failure(key+"ca_file", sentence("The issuer was not found: "+err.Error()),
			unknownCAFix(key+"ca_file", bearer.CAFile, "the issuer's"))}
	}
	return []Finding{failure(key+"issuer", sentence("The issuer was not found: "+err.Error()),
		"Correct "+key+"issuer, or make the issuer reachable from this machine.")}
}
