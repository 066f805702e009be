package oidc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Revoke revokes the tokens at the provider (RFC 7009). It does nothing if the
// provider has no revocation endpoint. Before the metadata have been read, that
// is not known: the error wraps ErrUnavailable.
func (c *Client) Revoke(ctx context.Context, t session.Tokens) error {
	m, err := c.discovered(ctx)
	if err != nil {
		return fmt.Errorf("revoke tokens: %w", err)
	}
	if m.Revocation == "" {
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
			_, err := c.post(ctx, m, formRequest{c.client, m.Revocation, form, nil}, http.StatusOK)
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
