package oidc

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"github.com/cloakroom-bff/cloakroom/session"
)

// target is what a route wants an access token for that is not the session's own. The zero value is the session's own.
type Target struct {
	Resource string   `json:"r,omitempty"` // RFC 8707
	Audience string   `json:"a,omitempty"` // RFC 8693
	Scopes   []string `json:"s,omitempty"`
	Exchange bool     `json:"x,omitempty"` // by token exchange (RFC 8693), else by refresh
}

// key names a target among a session's tokens; empty for the session's own. Two targets have the same name only if they are the same.
func (t Target) Key() string {
	if t.Resource == "" && t.Audience == "" && len(t.Scopes) == 0 {
		return ""
	}
	b, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings and a bool
	}
	return string(b)
}

// addTo adds what a token request has to say to get a token for the target.
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

// target returns what a key stands for.
func (p *Client) target(key string) (Target, error) {
	t, ok := p.targets[key]
	if !ok && key != "" {
		return Target{}, &session.RefreshError{Err: fmt.Errorf("no route wants a token for %s", key)}
	}
	return t, nil
}
