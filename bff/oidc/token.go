package oidc

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/dpop"
	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
	"github.com/cloakroom-bff/cloakroom/session"
)

// Exchange redeems an authorization code (RFC 6749, section 4.1.3; RFC 7636,
// section 4.5), and verifies the response before it uses the access token.
// accept decides on the verified identity; its error is returned as it is. With
// an error, Exchange returns the tokens that were issued nevertheless, so that
// the caller can revoke them.
func (c *Client) Exchange(
	ctx context.Context, code string, r Request, accept func(*Identity) error,
) (session.Tokens, *Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.MaxWait())
	defer cancel()
	m, err := c.discovered()
	if err != nil {
		return session.Tokens{}, nil, err
	}
	if _, err := c.breaker.admit(ctx, "", c.cfg.MaxWait()); err != nil {
		return session.Tokens{}, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if bound := c.cfg.SenderConstraint == "dpop"; bound != (r.Key != "") {
		return session.Tokens{}, nil, errors.New("redeem code: the login began under another configuration, which did not agree whether tokens are bound")
	}
	form := url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {code},
		"redirect_uri":  {c.cfg.RedirectURI},
		"code_verifier": {r.Verifier.Reveal()},
	}
	c.setSessionTarget(form, c.cfg.Scopes)
	answer, err := c.requestTokens(ctx, m, form, r.Key)
	if answer == nil {
		return session.Tokens{}, nil, fmt.Errorf("redeem code: %w", err)
	}
	tokens := answer.tokens
	if err != nil {
		return tokens, nil, fmt.Errorf("redeem code: %w", err)
	}
	if tokens.Scope == "" { // RFC 6749 5.1: what was asked for
		tokens.Scope = strings.Join(c.cfg.Scopes, " ")
	}
	if tokens.ID == "" {
		return tokens, nil, errors.New("redeem code: the answer holds no id_token")
	}
	id, err := c.verifyIDToken(ctx, m, tokens)
	if err == nil {
		err = r.checkNonce(id)
	}
	if err == nil {
		err = accept(id) // before the access token is used for anything
	}
	if err == nil && c.cfg.UserInfo {
		err = c.addUserInfo(ctx, m, tokens, id)
	}
	if err != nil {
		return tokens, nil, err
	}
	if tokens.Refresh == "" && slices.Contains(c.cfg.Scopes, "offline_access") {
		c.noRefreshToken.Do(func() {
			c.log.WarnContext(ctx, "provider issued no refresh token though offline_access was requested; sessions end with their access token", "issuer", c.cfg.Issuer,
				"advice", "allow refresh tokens for this client at the provider, or leave offline_access out of oidc.scopes")
		})
	}
	return tokens, id, nil
}

// setSessionTarget adds the resources and scopes of the session's own token to
// a token request. The grant may cover more: those of Targets.
func (c *Client) setSessionTarget(form url.Values, scopes []string) {
	if len(c.cfg.Resources) > 0 {
		form["resource"] = c.cfg.Resources
	}
	if len(c.scopes()) > len(c.cfg.Scopes) {
		form.Set("scope", strings.Join(scopes, " "))
	}
}

// grantedScopes returns those of the session's own scopes that were granted. A
// refresh may request no others (RFC 6749, section 6). openid and
// offline_access are always included: not every provider lists them in scope,
// but the ID token and the refresh token show that they were granted.
func (c *Client) grantedScopes(s *session.Session) []string {
	granted := strings.Fields(s.Tokens.Scope)
	var asked []string
	for _, scope := range c.cfg.Scopes {
		if scope == "openid" || scope == "offline_access" || slices.Contains(granted, scope) {
			asked = append(asked, scope)
		}
	}
	return asked
}

// Refresh implements session.Config.Refresh. During an outage of the provider
// its error is a *session.RefreshError with Outage set.
func (c *Client) Refresh(ctx context.Context, s *session.Session, key string) (session.RefreshResult, error) {
	renewal, err := c.refreshOnce(ctx, s, key)
	refused := errors.Is(err, session.ErrRefused) || errors.Is(err, session.ErrUserRequired)
	if err == nil || refused || !c.breaker.outage() {
		return renewal, err
	}
	outage := &session.RefreshError{Outage: true, Err: err}
	if given := (*session.RefreshError)(nil); errors.As(err, &given) {
		outage.RetryAfter = given.RetryAfter
	}
	return renewal, outage
}

// refreshOnce makes one refresh request (RFC 6749, section 6; OpenID Connect
// Core 12), for another target than the session's own also RFC 8707 and RFC
// 8693.
func (c *Client) refreshOnce(ctx context.Context, s *session.Session, key string) (session.RefreshResult, error) {
	m, err := c.discovered()
	if err != nil {
		return session.RefreshResult{}, err
	}
	t, err := c.target(key)
	if err != nil {
		return session.RefreshResult{}, err
	}
	if t.Exchange {
		return c.tokenExchange(ctx, m, s, t)
	}
	if s.Tokens.Refresh == "" {
		return session.RefreshResult{}, errors.New("the session has no refresh token to obtain another token with")
	}
	form := url.Values{
		"grant_type":    {"refresh_token"},
		"refresh_token": {s.Tokens.Refresh.Reveal()},
	}
	c.setSessionTarget(form, c.grantedScopes(s))
	t.addTo(form)
	bound := s.Tokens.Key
	if c.cfg.SenderConstraint == "dpop" && bound == "" { // the session began when tokens were not to be bound
		if key != "" {
			return session.RefreshResult{}, errors.New("the session's own token has to be bound to a key first")
		}
		if bound, err = NewKey(); err != nil {
			return session.RefreshResult{}, err
		}
	}
	answer, err := c.requestTokens(ctx, m, form, bound)
	if err != nil {
		var spent session.RefreshResult
		if answer != nil {
			spent.Tokens.Refresh = answer.tokens.Refresh
		}
		return spent, err
	}
	renewal := session.RefreshResult{Tokens: answer.tokens}
	if key != "" && renewal.Tokens.Scope == "" {
		renewal.Tokens.Scope = cmp.Or(form.Get("scope"), s.Tokens.Scope)
	}
	if answer.tokens.ID == "" {
		return renewal, nil
	}
	checking, cancel := context.WithTimeout(ctx, c.cfg.MaxWait()) // the new refresh token has to be saved
	defer cancel()
	id, err := c.verifyIDToken(checking, m, answer.tokens)
	if err == nil {
		err = id.matchesSession(s)
	}
	if err != nil && !errors.Is(err, errTokenMismatch) {
		// The tokens are issued and the ones before are spent. What cannot be
		// verified now is not kept; the rest must not be lost.
		c.log.WarnContext(ctx, "ID token of a refresh not verified; the one before is kept", "session", s.ID, "err", err)
		renewal.Tokens.ID = ""
		return renewal, nil
	}
	if err != nil {
		if unneeded := c.Revoke(ctx, answer.tokens); unneeded != nil {
			c.log.WarnContext(ctx, "tokens of an answer that is not to be trusted not revoked", "session", s.ID, "err", unneeded)
		}
		return session.RefreshResult{}, fmt.Errorf("%w: its answer is not to be trusted: %w", session.ErrRefused, err)
	}
	renewal.ExpiresAt = id.SessionExpiry
	if id.Nonce == "" { // the next one may have it (Core 12.2), and then it has to be the login's
		renewal.Tokens.ID = ""
	}
	if key == "" || !c.cfg.UserInfo { // the token of a target is not for userinfo
		renewal.Claims = c.renewedClaims(checking, m, s, answer.tokens, id)
	}
	return renewal, nil
}

// tokenExchange exchanges the session's access token for one for another target
// (RFC 8693). A refusal does not end the session.
func (c *Client) tokenExchange(
	ctx context.Context, m *metadata, s *session.Session, t Target,
) (session.RefreshResult, error) {
	form := url.Values{
		"grant_type":           {"urn:ietf:params:oauth:grant-type:token-exchange"},
		"subject_token":        {s.Tokens.Access.Reveal()},
		"subject_token_type":   {accessTokenType},
		"requested_token_type": {accessTokenType},
	}
	t.addTo(form)
	answer, err := c.requestTokens(ctx, m, form, s.Tokens.Key)
	if errors.Is(err, session.ErrUserRequired) {
		return session.RefreshResult{}, fmt.Errorf("exchange the access token: %w", err)
	}
	if refusal := (*Error)(nil); errors.As(err, &refusal) {
		return session.RefreshResult{}, &session.RefreshError{Err: fmt.Errorf("exchange the access token: %w", refusal)}
	}
	if err != nil {
		return session.RefreshResult{}, fmt.Errorf("exchange the access token: %w", err)
	}
	if issued := answer.issuedTokenType; issued != accessTokenType && issued != "urn:ietf:params:oauth:token-type:jwt" { // RFC 8693 2.2.1
		return session.RefreshResult{}, fmt.Errorf("exchange the access token: issued_token_type is %.80q", issued)
	}
	got := session.Tokens{
		Access: answer.tokens.Access, Scope: cmp.Or(answer.tokens.Scope, form.Get("scope"), noScope),
		Issued: answer.tokens.Issued, Expiry: answer.tokens.Expiry,
	}
	// It lives no longer than the token that it was exchanged for.
	if end := s.Tokens.Expiry; !end.IsZero() && (got.Expiry.IsZero() || end.Before(got.Expiry)) {
		got.Expiry = end
	}
	return session.RefreshResult{Tokens: got}, nil
}

const accessTokenType = "urn:ietf:params:oauth:token-type:access_token"

// Revoke revokes the tokens at the provider (RFC 7009). It does nothing if the
// provider has no revocation endpoint.
func (c *Client) Revoke(ctx context.Context, t session.Tokens) error {
	m := c.current.Load()
	if m == nil || m.Revocation == "" {
		return nil
	}
	type token struct{ hint, value string }
	all := []token{{"refresh_token", t.Refresh.Reveal()}, {"access_token", t.Access.Reveal()}}
	for _, superseded := range t.Superseded {
		all = append(all, token{"refresh_token", superseded.Reveal()})
	}
	for _, other := range t.Others {
		all = append(all, token{"access_token", other.Access.Reveal()})
	}
	errs := make([]error, len(all))
	var revoking sync.WaitGroup
	for i, t := range all {
		if t.value == "" {
			continue
		}
		revoking.Go(func() {
			form := url.Values{"token": {t.value}, "token_type_hint": {t.hint}}
			_, err := c.post(ctx, c.client, m, m.Revocation, form, nil, http.StatusOK)
			var refusal *Error
			if errors.As(err, &refusal) && refusal.Code == "unsupported_token_type" && t.hint == "access_token" {
				return // RFC 7009 2.2.1: it ends by itself, soon
			}
			if err != nil {
				errs[i] = fmt.Errorf("revoke %s: %w", t.hint, err)
			}
		})
	}
	revoking.Wait()
	return errors.Join(errs...)
}

// tokenResponse is what a token endpoint gives (RFC 6749 5.1).
type tokenResponse struct {
	tokens          session.Tokens
	issuedTokenType string // RFC 8693 2.2.1
}

// noScope is the scope of a token of which the provider says that it has none;
// the empty one says nothing.
const noScope = " "

// requestTokens makes one token request. The tokens are bound to the key,
// unless that is empty. Nothing is believed about the ID token yet. Beside an
// error there is what was issued all the same, if anything was.
func (c *Client) requestTokens(
	ctx context.Context, m *metadata, form url.Values, key session.Secret,
) (answer *tokenResponse, err error) {
	private, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	asked := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := c.breaker.supervise(asked, cancel)
	defer stop()
	defer func() {
		noResponse := errors.Is(err, session.ErrNoAnswer) || errors.Is(err, errUnreachable)
		if err == nil || noResponse || aboutProvider(form.Get("grant_type"), err) {
			c.breaker.report(asked, err)
		}
	}()
	body, err := c.post(ctx, c.tokenClient, m, m.Token, form, private, http.StatusOK)
	if err != nil {
		return nil, err
	}
	members, err := strictjson.Parse(body)
	if err == nil {
		err = members.Unambiguous("access_token", "token_type", "refresh_token", "id_token", "scope", "expires_in", "issued_token_type")
	}
	if err != nil {
		return nil, errors.New("the token endpoint's answer is not the JSON it should be") // the cause may quote a token
	}
	text := func(name string) string { // what is no text is not there
		s, _ := members.Text(name)
		return s
	}
	answer = &tokenResponse{
		issuedTokenType: text("issued_token_type"),
		tokens:          session.Tokens{Refresh: session.Secret(text("refresh_token"))},
	}
	if text("access_token") == "" {
		return answer, errors.New("the token endpoint's answer holds no access_token")
	}
	want := "Bearer"
	if private != nil {
		want = "DPoP" // RFC 9449 5: a token that is not bound is not what was asked for
	}
	if got := text("token_type"); !strings.EqualFold(got, want) {
		return answer, fmt.Errorf("the token endpoint's answer has token_type %.20q, want %s", got, want)
	}
	answer.tokens = session.Tokens{
		Access:  session.Secret(text("access_token")),
		Refresh: session.Secret(text("refresh_token")),
		ID:      session.Secret(text("id_token")),
		Scope:   scopeOf(members),
		Issued:  asked, // before the answer, so that the token is never taken to live longer than it does
		Key:     key,
	}
	life, _ := members.Value("expires_in")
	if seconds, ok := parseSeconds(life); ok {
		answer.tokens.Expiry = asked.Add(seconds)
	} else {
		answer.tokens.Expiry = jwtExpiry(text("access_token"))
	}
	life, _ = members.Value("refresh_token_expires_in")
	if seconds, ok := parseSeconds(life); ok {
		answer.tokens.RefreshExpiry = asked.Add(seconds)
	}
	return answer, nil
}

// aboutProvider reports whether the response to a token request, which is an
// error, can be a sign of an outage. Anybody can send a code. That the provider
// refuses another grant than a refresh says nothing about refreshes.
func aboutProvider(grantType string, err error) bool {
	var refusal *Error
	switch grantType {
	case "refresh_token":
		return true
	case "authorization_code":
		return false
	}
	return errors.As(err, &refusal) && refusal.serverFault()
}

// jwtExpiry returns the exp claim of an access token of which the response does
// not say when it expires. It is a hint, so the signature is not verified; the
// zero time means that there is none.
func jwtExpiry(token string) time.Time {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	claims, err := strictjson.Parse(payload)
	if err != nil {
		return time.Time{}
	}
	exp, err := claims.Date("exp")
	if err != nil || exp.Unix() <= 0 || exp.Unix() > 1e11 {
		return time.Time{}
	}
	return exp
}

// scopeOf returns the scope of a token response. It is empty if the member is
// missing, which means the scope that was requested (RFC 6749, section 5.1).
// Some providers send an array. Any other value means that no scope was
// granted.
func scopeOf(members strictjson.Object) string {
	if raw, err := members.Raw("scope"); err == nil && raw == nil {
		return ""
	}
	scopes, err := members.Texts("scope")
	scope := strings.Join(scopes, " ")
	if err != nil || strings.TrimSpace(scope) == "" {
		return noScope
	}
	return scope
}

// parseSeconds parses expires_in. Some providers send the number as a string.
func parseSeconds(value any) (time.Duration, bool) {
	seconds, err := strconv.ParseFloat(fmt.Sprint(value), 64)
	if err != nil || !(seconds > 0 && seconds <= 1e9) {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

// Error is a response that refuses a request (RFC 6749, section 5.2). Its text
// is for the log alone.
type Error struct {
	Status      int
	Code        string // empty if the response is not an OAuth error
	Description string // without what could be a secret
}

// transient reports whether the same request may succeed later: the provider,
// or a proxy in front of it, has a fault, or does not know this client for now.
func (e *Error) transient() bool {
	if e.serverFault() || e.Code == "" { // it is not an OAuth error response
		return true
	}
	switch e.Code {
	case "temporarily_unavailable", "server_error", "slow_down", "invalid_client", "unauthorized_client":
		return true
	}
	return false
}

// Unavailable reports whether the provider cannot serve now, or wants fewer
// requests.
func (e *Error) Unavailable() bool {
	return e.Status >= 500 || e.Status == http.StatusTooManyRequests
}

// serverFault reports whether the status says that the server cannot serve now.
func (e *Error) serverFault() bool {
	return e.Unavailable() || e.Status == http.StatusRequestTimeout
}

func (e *Error) Error() string {
	text := fmt.Sprintf("the provider answered %d", e.Status)
	for _, more := range []string{e.Code, e.Description} {
		if more != "" {
			text += fmt.Sprintf(" %q", more)
		}
	}
	return text
}

// parseError reads a response that refuses what form asked for.
func (c *Client) parseError(status int, body []byte, form url.Values) *Error {
	answer, _ := strictjson.Parse(body) // what is no object has no members
	code, _ := answer.Text("error")
	if answer.Unambiguous("error") != nil {
		code = ""
	}
	description, _ := answer.Text("error_description")
	refusal := &Error{Status: status, Description: description}
	if errorCode.MatchString(code) {
		refusal.Code = code
	}
	secrets := []string{c.cfg.ClientSecret.Reveal()}
	for _, name := range []string{"code", "code_verifier", "refresh_token", "token", "subject_token"} {
		secrets = append(secrets, form.Get(name))
	}
	for _, secret := range secrets {
		if secret != "" { // which a provider may quote
			refusal.Description = strings.NewReplacer(secret, "…", url.QueryEscape(secret), "…").Replace(refusal.Description)
			if strings.Contains(refusal.Code, secret) {
				refusal.Code = ""
			}
		}
	}
	refusal.Description = tokenLike.ReplaceAllString(refusal.Description, "…")
	refusal.Description = refusal.Description[:min(len(refusal.Description), 300)]
	return refusal
}

// userRequired are the error codes by which a provider requires the user to do
// something (OpenID Connect Core 3.1.2.6), which only a login makes possible.
var userRequired = map[string]bool{
	"interaction_required": true, "login_required": true, "consent_required": true, "account_selection_required": true,
}

var (
	// errorCode matches the values of error (RFC 6749, section 5.2, and its
	// extensions).
	errorCode = regexp.MustCompile(`^[a-z_.-]{1,64}$`)
	// tokenLike matches what could be a token or a part of one.
	tokenLike = regexp.MustCompile(`[\w.~+/=%-]{20,}`)
)

// post sends form to one of the provider's endpoints, as the client that we
// are, with a DPoP proof unless key is nil, and returns the body of an answer
// with the status that is wanted. It says of every other end what it means to a
// session: refused, no answer, or a fault that passes.
func (c *Client) post(
	ctx context.Context, client *http.Client, m *metadata, endpoint string, form url.Values, key *ecdsa.PrivateKey, want int,
) ([]byte, error) {
	for first := true; ; first = false {
		resp, body, err := c.postOnce(ctx, client, m, endpoint, form, key)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == want {
			return body, nil
		}
		refusal := c.parseError(resp.StatusCode, body, form)
		if first && key != nil && refusal.Code == "use_dpop_nonce" && dpop.NonceOf(resp.Header) != "" { // RFC 9449 8
			continue
		}
		if refusal.Code == "invalid_grant" && resp.StatusCode/100 == 4 && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestTimeout {
			return nil, fmt.Errorf("%w: %w", session.ErrRefused, refusal)
		}
		if userRequired[refusal.Code] && resp.StatusCode/100 == 4 {
			return nil, fmt.Errorf("%w: %w", session.ErrUserRequired, refusal)
		}
		return nil, &session.RefreshError{RetryAfter: retryAfter(resp.Header.Get("Retry-After")), Err: refusal}
	}
}

// postOnce sends form once. Each request has a new client assertion and a new
// DPoP proof, because a provider accepts neither twice.
func (c *Client) postOnce(
	ctx context.Context, client *http.Client, m *metadata, endpoint string, form url.Values, key *ecdsa.PrivateKey,
) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, nil)
	if err != nil {
		return nil, nil, err
	}
	if err := c.authenticate(m, req, form); err != nil {
		return nil, nil, err
	}
	text := form.Encode()
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
	req.Body, _ = req.GetBody() // a request of which nothing was written is sent on another connection
	req.ContentLength = int64(len(text))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if key != nil {
		signed, err := dpop.Proof(key, http.MethodPost, req.URL, "", c.nonces.get(req.URL))
		if err != nil {
			return nil, nil, err
		}
		req.Header.Set("DPoP", signed)
	}
	return c.do(client, req)
}

// do makes a request of the provider, and reads the whole response. Its error
// wraps session.ErrNoAnswer if the provider may have received the request, and
// errUnreachable if it did not.
func (c *Client) do(client *http.Client, req *http.Request) (*http.Response, []byte, error) {
	var sent atomic.Bool
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	resp, err := client.Do(req.WithContext(ctx))
	var body []byte
	if err == nil {
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
	}
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errResponseLost) {
			err = cause
		}
		if !sent.Load() {
			return nil, nil, fmt.Errorf("%w: %w", errUnreachable, err)
		}
		return nil, nil, fmt.Errorf("%w: %w", session.ErrNoAnswer, err)
	}
	c.nonces.learn(req.URL, resp.Header) // of a good answer too (RFC 9449 8.2)
	return resp, body, nil
}

// retryAfter parses Retry-After (RFC 9110, section 10.2.3). It returns 0 if the
// value is missing or invalid.
func retryAfter(value string) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Duration(min(seconds, 3600)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
