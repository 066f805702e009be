package bearer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/jwks"
)

const (
	maxLifetime  = time.Hour        // of keys, whatever their Cache-Control says
	coolDown     = 30 * time.Second // between two fetches for the sake of unknown kids
	fetchTimeout = 10 * time.Second // of an introspection
	maxAnswer    = 1 << 20          // bytes of the response to one
	retryDelay   = 5 * time.Second  // until a client may ask again while the keys cannot be had
)

func unavailable(err error) error { return fmt.Errorf("%w: %w", ErrUnavailable, err) }

// newKeys returns the keys of an issuer. Each fetch asks its metadata where they
// are, so that they may move.
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

// advise says what to do about a response that is not the document.
func advise(err error, what string) error {
	if errors.As(err, new(*jwks.StatusError)) {
		return fmt.Errorf("%w (%s)", err, what)
	}
	return err
}

// confined returns a client as the one given, or as the default, that stays on the host that it asks.
func confined(client *http.Client) *http.Client {
	if client == nil {
		client = new(http.Client)
	}
	ours := *client
	ours.CheckRedirect = sameHostOnly
	return &ours
}

// sameHostOnly fails for a redirect to another host or scheme: the keys are those
// that the issuer serves.
func sameHostOnly(r *http.Request, via []*http.Request) error {
	switch first := via[0].URL; {
	case r.URL.Scheme != first.Scheme || r.URL.Host != first.Host:
		return fmt.Errorf("it redirects to %s, and redirects to another host are not followed (check the issuer)",
			jwks.WithoutQuery(r.URL))
	case len(via) > 3:
		return fmt.Errorf("it redirects more than 3 times, at last to %s", jwks.WithoutQuery(r.URL))
	}
	return nil
}
