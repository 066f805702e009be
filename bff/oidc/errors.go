package oidc

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
)

var (
	// ErrUnavailable means that the provider cannot be reached, has not been
	// discovered yet, or did not respond in time. The same request may succeed
	// later.
	ErrUnavailable = errors.New("the provider is unavailable")
	// ErrRefused means that the provider does not accept this client's
	// authorization requests. An operator has to change something.
	ErrRefused = errors.New("the provider refuses the authorization request")
)

// unavailable is an error that is ErrUnavailable and says why.
type unavailable string

func (e unavailable) Error() string { return string(e) }

func (unavailable) Is(target error) bool { return target == ErrUnavailable }

// outage is an error that is ErrUnavailable because of another one.
type outage struct{ error }

func (e outage) Unwrap() error { return e.error }

func (outage) Is(target error) bool { return target == ErrUnavailable }

const errNotDiscovered = unavailable("the provider has not been found yet")

// CapabilityError means that the provider does not support what the
// configuration uses. Its text says what.
type CapabilityError string

func (e CapabilityError) Error() string { return string(e) }

// MetadataError means that a member of the provider's metadata is missing, or
// cannot be used. Its text says which.
type MetadataError string

func (e MetadataError) Error() string { return string(e) }

// Error is a response that refuses a request (RFC 6749, section 5.2). Its text
// is for the log alone.
type Error struct {
	Status      int    // of HTTP
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

// Unavailable reports whether the error is transient: a 5xx, or 429.
func (e *Error) Unavailable() bool {
	return e.Status >= 500 || e.Status == http.StatusTooManyRequests
}

// serverFault reports whether the status says that the server cannot serve now.
func (e *Error) serverFault() bool {
	return e.Unavailable() || e.Status == http.StatusRequestTimeout
}

func (e *Error) Error() string {
	text := fmt.Sprintf("the provider responded with %d", e.Status)
	for _, more := range []string{e.Code, e.Description} {
		if more != "" {
			text += fmt.Sprintf(" %q", more)
		}
	}
	return text
}

// parseError parses an error response to a request with a form.
func (c *Client) parseError(status int, body []byte, form url.Values) *Error {
	members, _ := strictjson.Parse(body) // anything but an object has no members
	code, _ := members.Text("error")
	if members.Unambiguous("error") != nil {
		code = ""
	}
	description, _ := members.Text("error_description")
	refusal := &Error{Status: status, Description: description}
	if errorCode.MatchString(code) {
		refusal.Code = code
	}
	secrets := []string{c.cfg.ClientSecret.Reveal()}
	for _, name := range []string{"code", "code_verifier", "refresh_token", "token", "subject_token"} {
		secrets = append(secrets, form.Get(name))
	}
	for _, secret := range secrets {
		if secret != "" { // a provider may quote it
			refusal.Description = strings.NewReplacer(secret, "…", url.QueryEscape(secret),
				"…").Replace(refusal.Description)
			if strings.Contains(refusal.Code, secret) {
				refusal.Code = ""
			}
		}
	}
	refusal.Description = CleanDescription(refusal.Description)
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
