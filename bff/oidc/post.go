package oidc

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/dpop"
	"github.com/cloakroom-bff/cloakroom/session"
)

// formRequest is a form for one of the provider's endpoints.
type formRequest struct {
	client   *http.Client
	endpoint string // URL
	form     url.Values
	key      *ecdsa.PrivateKey // of the DPoP proof; nil: there is none
}

// post sends a form, authenticated as this client. It returns the body of a
// response with the wanted status. Its error wraps session.ErrRefused or
// session.ErrUserRequired, or is a *session.RefreshError, or as do returns it.
func (c *Client) post(ctx context.Context, m *metadata, r formRequest, want int) ([]byte, error) {
	for first := true; ; first = false {
		resp, body, err := c.postOnce(ctx, m, r)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == want {
			return body, nil
		}
		refusal := c.parseError(resp.StatusCode, body, r.form)
		if first && r.key != nil && refusal.Code == "use_dpop_nonce" && dpop.NonceOf(resp.Header) != "" { // RFC 9449 8
			continue
		}
		if refusal.Code == "invalid_grant" && resp.StatusCode/100 == 4 && !refusal.serverFault() {
			return nil, fmt.Errorf("%w: %w", session.ErrRefused, refusal)
		}
		if userRequired[refusal.Code] && resp.StatusCode/100 == 4 {
			return nil, fmt.Errorf("%w: %w", session.ErrUserRequired, refusal)
		}
		return nil, &session.RefreshError{RetryAfter: retryAfter(resp.Header.Get("Retry-After")), Err: refusal}
	}
}

// postOnce sends a form once. Each request has a new client assertion and a new
// DPoP proof, because a provider accepts neither twice.
func (c *Client) postOnce(ctx context.Context, m *metadata, r formRequest) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.endpoint, nil)
	if err != nil {
		return nil, nil, err
	}
	if err := c.authenticate(m, req, r.form); err != nil {
		return nil, nil, err
	}
	text := r.form.Encode()
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
	req.Body, _ = req.GetBody() // a request of which nothing was written is sent on another connection
	req.ContentLength = int64(len(text))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if r.key != nil {
		signed, err := dpop.Proof(r.key, http.MethodPost, req.URL, "", c.nonces.get(req.URL))
		if err != nil {
			return nil, nil, err
		}
		req.Header.Set("DPoP", signed)
	}
	return c.do(r.client, req)
}

// do makes a request of the provider, and reads the whole response. Its error
// wraps session.ErrNoResponse if the provider may have received the request,
// and errUnreachable if it did not.
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
		return nil, nil, fmt.Errorf("%w: %w", session.ErrNoResponse, err)
	}
	c.nonces.learn(req.URL, resp.Header) // also with a success (RFC 9449, section 8.2)
	return resp, body, nil
}

// retryAfter parses Retry-After (RFC 9110, section 10.2.3), and returns at most
// maxProviderPause. It returns 0 if the value is missing or invalid.
func retryAfter(value string) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return min(time.Duration(seconds)*time.Second, maxProviderPause)
	}
	if at, err := http.ParseTime(value); err == nil {
		return min(max(0, time.Until(at)), maxProviderPause)
	}
	return 0
}
