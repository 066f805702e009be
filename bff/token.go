package bff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// exchange redeems the code of a callback (RFC 6749 4.1.3, RFC 7636 4.5) and verifies what comes for it.
func (p *provider) exchange(ctx context.Context, code string, a *attempt) (session.Tokens, *idToken, error) {
	m, err := p.metadata()
	if err != nil {
		return session.Tokens{}, nil, err
	}
	tokens, err := p.askTokens(ctx, m, url.Values{
		"grant_type":    {"authorization_code"},
		"code":          {code},
		"redirect_uri":  {p.redirectURI},
		"code_verifier": {a.Verifier.Reveal()},
	})
	if err != nil {
		return session.Tokens{}, nil, fmt.Errorf("redeem code: %w", err)
	}
	if tokens.ID == "" {
		return session.Tokens{}, nil, errors.New("redeem code: the answer holds no id_token")
	}
	id, err := p.verifyIDToken(ctx, m, tokens)
	if err != nil {
		return session.Tokens{}, nil, err
	}
	return tokens, id, nil
}

// refresh is session.Config.Refresh: RFC 6749 6 and OpenID Connect Core 12.
func (p *provider) refresh(ctx context.Context, s *session.Session) (session.Tokens, error) {
	m, err := p.metadata()
	if err != nil {
		return session.Tokens{}, err
	}
	tokens, err := p.askTokens(ctx, m, url.Values{
		"grant_type":    {"refresh_token"},
		"refresh_token": {s.Tokens.Refresh.Reveal()},
	})
	if err != nil {
		return session.Tokens{}, err
	}
	if tokens.ID == "" {
		return tokens, nil
	}
	id, err := p.verifyIDToken(ctx, m, tokens)
	switch {
	case errors.Is(err, errKeysUnreachable), errors.Is(err, errKeysCurrent), errors.Is(err, errClock):
		// The tokens are issued and the ones before are spent. What cannot be verified now is not kept; the rest must not be lost.
		p.log.WarnContext(ctx, "ID token of a refresh not verified; the one before is kept", "session", s.ID, "err", err)
		tokens.ID = ""
		return tokens, nil
	case err == nil && (id.Subject != s.Subject || id.Issuer != s.Issuer): // OpenID Connect Core 12.2
		err = errors.New("its ID token is for another subject")
	}
	if err != nil {
		if unneeded := p.revoke(ctx, tokens); unneeded != nil {
			p.log.WarnContext(ctx, "tokens of an answer that is not to be trusted not revoked", "session", s.ID, "err", unneeded)
		}
		return session.Tokens{}, fmt.Errorf("%w: its answer is not to be trusted: %w", session.ErrRefused, err)
	}
	return tokens, nil
}

// revoke tells the provider that the tokens are not needed any more (RFC 7009). A provider that has no place for it is told nothing.
func (p *provider) revoke(ctx context.Context, t session.Tokens) error {
	m := p.found.Load()
	if m == nil || m.Revocation == "" || t.Refresh == "" {
		return nil
	}
	_, err := p.post(ctx, m.Revocation, url.Values{"token": {t.Refresh.Reveal()}, "token_type_hint": {"refresh_token"}})
	if err != nil {
		return fmt.Errorf("revoke refresh token: %w", err)
	}
	return nil
}

// tokenAnswer is RFC 6749 5.1.
type tokenAnswer struct {
	AccessToken  string          `json:"access_token"`
	TokenType    string          `json:"token_type"`
	ExpiresIn    json.RawMessage `json:"expires_in"` // a number; some providers send a string
	RefreshToken string          `json:"refresh_token"`
	IDToken      string          `json:"id_token"`
	Scope        string          `json:"scope"`
}

// askTokens makes one token request. Nothing is believed about the ID token yet.
func (p *provider) askTokens(ctx context.Context, m *metadata, form url.Values) (session.Tokens, error) {
	asked := time.Now()
	body, err := p.post(ctx, m.authorization.TokenURL, form)
	if err != nil {
		return session.Tokens{}, err
	}
	var answer tokenAnswer
	if err := json.Unmarshal(body, &answer); err != nil {
		return session.Tokens{}, errors.New("the token endpoint's answer is not the JSON it should be") // the cause may quote a token
	}
	if answer.AccessToken == "" {
		return session.Tokens{}, errors.New("the token endpoint's answer holds no access_token")
	}
	if !strings.EqualFold(answer.TokenType, "Bearer") {
		return session.Tokens{}, fmt.Errorf("the token endpoint's answer has token_type %.20q, want Bearer", answer.TokenType)
	}
	tokens := session.Tokens{
		Access:  session.Secret(answer.AccessToken),
		Refresh: session.Secret(answer.RefreshToken),
		ID:      session.Secret(answer.IDToken),
		Scope:   answer.Scope,
		Issued:  asked, // before the answer, so that the token is never taken to live longer than it does
	}
	if seconds, ok := parseSeconds(answer.ExpiresIn); ok {
		tokens.Expiry = asked.Add(seconds)
	}
	return tokens, nil
}

// parseSeconds reads expires_in: a number, or one in quotes. What is neither says nothing.
func parseSeconds(raw json.RawMessage) (time.Duration, bool) {
	seconds, err := strconv.ParseFloat(strings.Trim(string(raw), `"`), 64)
	if err != nil || seconds <= 0 || seconds > 1e9 {
		return 0, false
	}
	return time.Duration(seconds * float64(time.Second)), true
}

// tokenError is an answer that refuses (RFC 6749 5.2). It does not hold the answer's body, which may quote what was sent.
type tokenError struct {
	status int
	code   string
}

func (e *tokenError) Error() string {
	if e.code == "" {
		return fmt.Sprintf("the provider answered %d", e.status)
	}
	return fmt.Sprintf("the provider answered %d %q", e.status, e.code)
}

// post sends form to one of the provider's endpoints, as the client that we are, and returns the body of a 200. It says of every
// other end what it means to a session: refused, no answer, or a fault that passes.
func (p *provider) post(ctx context.Context, endpoint string, form url.Values) ([]byte, error) {
	if p.cfg.ClientAuth == "client_secret_post" {
		form.Set("client_id", p.cfg.ClientID)
		form.Set("client_secret", p.cfg.ClientSecret.Reveal())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if p.cfg.ClientAuth == "client_secret_basic" {
		// Both are form-encoded before they go into the header (RFC 6749 2.3.1).
		req.SetBasicAuth(url.QueryEscape(p.cfg.ClientID), url.QueryEscape(p.cfg.ClientSecret.Reveal()))
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", session.ErrNoAnswer, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", session.ErrNoAnswer, err)
	}
	if resp.StatusCode == http.StatusOK {
		return body, nil
	}
	var answer struct {
		Error string `json:"error"`
	}
	json.Unmarshal(body, &answer) // what is not JSON has no code
	refusal := &tokenError{resp.StatusCode, answer.Error[:min(len(answer.Error), 64)]}
	if refusal.code == "invalid_grant" && resp.StatusCode/100 == 4 {
		return nil, fmt.Errorf("%w: %w", session.ErrRefused, refusal)
	}
	return nil, &session.RefreshError{RetryAfter: retryAfter(resp.Header.Get("Retry-After")), Err: refusal}
}

// retryAfter reads RFC 9110 10.2.3; what is not there or makes no sense is 0.
func retryAfter(value string) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Duration(min(seconds, 3600)) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
