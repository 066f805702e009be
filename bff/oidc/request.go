package oidc

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Request is one authorization request.
type Request struct {
	State    string         // random, at most 2048 bytes
	Nonce    string         // random, for the ID token
	Verifier session.Secret // of PKCE (RFC 7636, section 4.1)
	// Key is the DPoP key to which the tokens will be bound, as NewKey returns
	// it. Empty means bearer tokens.
	Key        session.Secret
	Parameters url.Values // those that Client.Demand returned
}

// LoginParameters returns the parameters of a login link that are passed to the
// provider (OpenID Connect Core, section 3.1.2.1). Others are ignored: a link
// does not choose client, scope or redirect URI.
func LoginParameters(q url.Values) (url.Values, error) {
	extra := make(url.Values)
	for _, name := range []string{"prompt", "login_hint", "acr_values", "max_age", "ui_locales"} {
		value := strings.Trim(q.Get(name), " ")
		if value == "" { // spaces name nothing
			continue
		}
		if len(value) > 256 || strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			return nil, fmt.Errorf("%s is longer than 256 bytes or has control characters", name)
		}
		extra.Set(name, value)
	}
	if prompt := extra.Get("prompt"); prompt != "" {
		for _, p := range strings.Fields(prompt) {
			switch p {
			case "login", "consent", "select_account", "create":
			case "none":
				if prompt != "none" {
					return nil, fmt.Errorf("prompt %q has none beside others", prompt)
				}
			default:
				return nil, fmt.Errorf("prompt %q is not one", p)
			}
		}
	}
	if maxAge := extra.Get("max_age"); maxAge != "" {
		if n, err := strconv.Atoi(maxAge); err != nil || n < 0 || n > 1e9 {
			return nil, fmt.Errorf("max_age %q is not a number of seconds", maxAge)
		}
	}
	return extra, nil
}

// Response is an authorization response (RFC 6749, section 4.1.2; RFC 9207).
type Response struct {
	State       string
	Code        string // empty if the response is an error
	Error       string // the error code; empty if there is none
	Description string // error_description, by CleanDescription
	Issuer      string // iss
	HasIssuer   bool   // whether the parameter iss is present
}

// maxState is the length of the longest state that is accepted. Ours are
// shorter.
const maxState = 2048

// ParseResponse reads the parameters of a callback. It fails unless there are a
// state and either a code or an error, each once. Unknown parameters are
// ignored (RFC 6749, section 4.1.2). No value has been verified when it
// returns.
func ParseResponse(q url.Values) (Response, error) {
	for _, name := range []string{"state", "code", "error", "iss"} {
		if len(q[name]) > 1 { // RFC 6749 3.1
			return Response{}, fmt.Errorf("%s is there %d times", name, len(q[name]))
		}
	}
	resp := Response{
		State: q.Get("state"), Code: q.Get("code"), Error: q.Get("error"),
		Description: CleanDescription(q.Get("error_description")),
		Issuer:      q.Get("iss"), HasIssuer: q.Has("iss"),
	}
	switch {
	case resp.State == "":
		return Response{}, errors.New("state is missing")
	case len(resp.State) > maxState:
		return Response{}, fmt.Errorf("state has %d bytes", len(resp.State))
	case (resp.Code == "") == (resp.Error == ""):
		return Response{}, errors.New("either code or error has to be there, not both")
	}
	return resp, nil
}

// CheckIssuer verifies that a response is from the provider that was asked (RFC
// 9207, section 2.4). It fails with ErrUnavailable if the metadata, which says
// whether iss is required, has not been read yet.
func (c *Client) CheckIssuer(ctx context.Context, resp Response) error {
	m, err := c.discovered(ctx)
	switch {
	case err != nil:
		return err
	case resp.HasIssuer && resp.Issuer != c.cfg.Issuer:
		return fmt.Errorf("iss is %.80q, want %q", resp.Issuer, c.cfg.Issuer)
	case !resp.HasIssuer && m.IssParameter:
		return errors.New("iss is missing, and the provider's metadata says that it is sent")
	}
	return nil
}

// AuthenticationExpired reports whether the provider has forgotten the request
// because the user took too long, in the words of Keycloak. A new request
// helps.
func (r *Response) AuthenticationExpired() bool {
	return r.Error == "temporarily_unavailable" && r.Description == "authentication_expired"
}

// maxDescription is how much of an error_description is logged.
const maxDescription = 300

// snakeCase matches names such as authentication_expired, which are no tokens.
var snakeCase = regexp.MustCompile(`^[a-z]{1,20}(_[a-z]{1,20})+$`)

// CleanDescription returns an error_description for the log: at most 300 bytes,
// without control characters and without what could be a token.
func CleanDescription(text string) string {
	text = text[:min(len(text), 4*maxDescription)]
	text = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(text, ""))
	text = tokenLike.ReplaceAllStringFunc(text, func(found string) string {
		if snakeCase.MatchString(found) {
			return found
		}
		return "…"
	})
	return strings.ToValidUTF8(text[:min(len(text), maxDescription)], "")
}
