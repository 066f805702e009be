package bearer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/jwks"
)

const (
	maxLifetime  = time.Hour        // of keys, whatever their Cache-Control is
	coolDown     = 30 * time.Second // between two fetches caused by unknown kids
	fetchTimeout = 10 * time.Second // of an introspection
	maxResponse  = 1 << 20          // of an introspection, in bytes
	retryDelay   = 5 * time.Second  // Retry-After while the keys are not available
)

func unavailable(err error) error { return fmt.Errorf("%w: %w", ErrUnavailable, err) }

// newKeys returns the keys of an issuer. Each fetch reads its metadata again,
// since jwks_uri may change.
func newKeys(issuer string, client *http.Client, log *slog.Logger) *jwks.Set {
	client = confined(client)
	return jwks.NewSet(jwks.Config{
		Issuer: issuer, MaxLifetime: maxLifetime, Logger: log,
		Fetch: func(ctx context.Context) (*jwks.Document, error) {
			metadata, from, err := jwks.Discover(ctx, client, issuer)
			if err != nil {
				return nil, advise(err, "check the issuer")
			}
			where, err := metadata.Text("jwks_uri")
			if err == nil {
				_, err = checkURL(where, strings.HasPrefix(issuer, "http:"))
			}
			if err != nil {
				return nil, fmt.Errorf("%s: jwks_uri: %w", from, err)
			}
			document, err := jwks.Get(ctx, client, where)
			if err != nil {
				return nil, advise(err, "check the jwks_uri of the issuer's metadata")
			}
			return document, nil
		},
	})
}

// advise adds a hint to an error with an HTTP status, or of an unknown CA.
func advise(err error, what string) error {
	switch {
	case errors.As(err, new(*jwks.StatusError)):
		return fmt.Errorf("%w (%s)", err, what)
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return fmt.Errorf("%w (the HTTP client has to trust the CA of the certificate; in a route of Cloakroom: "+
			"accept_bearer.ca_file)", err)
	}
	return err
}

// confined returns a copy of client, or a default one, that follows only
// redirects to the same host.
func confined(client *http.Client) *http.Client {
	if client == nil {
		client = new(http.Client)
	}
	ours := *client
	ours.CheckRedirect = sameHostOnly
	return &ours
}

// sameHostOnly rejects redirects to another host or scheme, so that keys come
// from the issuer itself.
func sameHostOnly(r *http.Request, via []*http.Request) error {
	switch first := via[0].URL; {
	case r.URL.Scheme != first.Scheme || r.URL.Host != first.Host:
		return fmt.Errorf("redirect to another host is not followed: %s (check the issuer)",
			jwks.WithoutQuery(r.URL))
	case len(via) > 3:
		return fmt.Errorf("more than 3 redirects, the last to %s", jwks.WithoutQuery(r.URL))
	}
	return nil
}
