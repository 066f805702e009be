package oidc

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Target describes an access token besides the session's own: a resource, an
// audience, scopes. The zero value stands for the session's own token.
type Target struct {
	Resource string   `json:"r,omitempty"` // RFC 8707
	Audience string   `json:"a,omitempty"` // RFC 8693
	Scopes   []string `json:"s,omitempty"`
	Exchange bool     `json:"x,omitempty"` // obtained by token exchange (RFC 8693), not by refresh
}

// Key returns the name of the target among a session's tokens. It is empty for
// the session's own token, and differs between different targets.
func (t Target) Key() string {
	if t.Resource == "" && t.Audience == "" && len(t.Scopes) == 0 {
		return ""
	}
	b, err := json.Marshal(t)
	if err != nil {
		panic(err) // cannot happen: the fields are strings and a bool
	}
	return string(b)
}

// addTo adds the parameters of the target to a token request.
func (t Target) addTo(form url.Values) {
	if t.Resource != "" {
		form.Set("resource", t.Resource)
	}
	if t.Audience != "" {
		form.Set("audience", t.Audience)
	}
	if len(t.Scopes) > 0 {
		form.Set("scope", strings.Join(t.Scopes, " "))
	}
}

// target returns the target with a key. It fails if no route has it.
func (c *Client) target(key string) (Target, error) {
	t, ok := c.targets[key]
	if !ok && key != "" {
		return Target{}, &session.RefreshError{Err: fmt.Errorf("no route wants a token for %s", key)}
	}
	return t, nil
}
