package jwks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
)

const maxDocument = 1 << 20 // bytes

// Document is a resource that was fetched.
type Document struct {
	URL    string
	Header http.Header
	Body   []byte
}

// Get requests a document. A response with another status than 200 is a
// *StatusError.
func Get(ctx context.Context, client *http.Client, from string) (*Document, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err // which does not name the URL once more
		}
		return nil, fmt.Errorf("GET %s: %w", from, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, &StatusError{URL: from, Status: resp.StatusCode, Location: location(resp)}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("GET %s: %w", from, err)
	case len(body) > maxDocument:
		return nil, fmt.Errorf("GET %s: the response is longer than %d bytes", from, maxDocument)
	}
	return &Document{URL: from, Header: resp.Header, Body: body}, nil
}

// StatusError is a response that is not the document. It does not quote the
// body.
type StatusError struct {
	URL      string
	Status   int
	Location string // where a redirect leads; empty if it is none
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("GET %s: %d", e.URL, e.Status)
	if name := http.StatusText(e.Status); name != "" {
		text += " " + name
	}
	if e.Location != "" {
		text += " to " + e.Location
	}
	return text
}

// location returns where a redirect leads, without what could be a secret.
func location(resp *http.Response) string {
	u, err := resp.Location() // resolved against the URL that was asked
	if err != nil || resp.StatusCode/100 != 3 {
		return ""
	}
	return WithoutQuery(u)
}

// WithoutQuery returns what of a URL may be logged: no user, query and
// fragment, and no more than 300 bytes.
func WithoutQuery(u *url.URL) string {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath, Opaque: u.Opaque}
	return fmt.Sprintf("%.300s", shown.String())
}

// Discover returns the metadata of an issuer, and the URL that it is from:
// OpenID Connect Discovery 1.0, section 4, or RFC 8414, section 3, if there is
// none. The issuer in it is the one that was asked for, to the letter.
func Discover(ctx context.Context, client *http.Client, issuer string) (strictjson.Object, string, error) {
	// A slash at the end of the issuer gives way to the path. It stays part of
	// the issuer.
	trimmed := strings.TrimSuffix(issuer, "/")
	document, err := Get(ctx, client, trimmed+"/.well-known/openid-configuration")
	if status := (*StatusError)(nil); errors.As(err, &status) && status.Status == http.StatusNotFound {
		u, parseErr := url.Parse(issuer)
		if parseErr != nil {
			return nil, "", parseErr
		}
		path := "/.well-known/oauth-authorization-server" + strings.TrimSuffix(u.EscapedPath(), "/")
		var other error
		document, other = Get(ctx, client, u.Scheme+"://"+u.Host+path)
		if other == nil {
			err = nil
		} else if !errors.As(other, &status) || status.Status != http.StatusNotFound {
			err = other
		}
	}
	if err != nil {
		return nil, "", err
	}
	metadata, err := strictjson.Parse(document.Body)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", document.URL, err)
	}
	switch named, err := metadata.Text("issuer"); {
	case err != nil:
		return nil, "", fmt.Errorf("%s: %w", document.URL, err)
	case named != issuer: // OpenID Connect Discovery 1.0, section 4.3
		return nil, "", fmt.Errorf("%s: issuer is %.200q, want %q", document.URL, named, issuer)
	}
	return metadata, document.URL, nil
}
