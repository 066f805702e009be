package bff

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"github.com/cloakroom-bff/cloakroom/session"
)

// target is what a route wants an access token for that is not the session's own. The zero value is the session's own.
type target struct {
	Resource string   `json:"r,omitempty"` // RFC 8707
	Audience string   `json:"a,omitempty"` // RFC 8693
	Scopes   []string `json:"s,omitempty"`
	Exchange bool     `json:"x,omitempty"` // by token exchange (RFC 8693), else by refresh
}

// key names a target among a session's tokens; empty for the session's own. Two targets have the same name only if they are the same.
func (t target) key() string {
	if t.Resource == "" && t.Audience == "" && len(t.Scopes) == 0 {
		return ""
	}
	b, err := json.Marshal(t)
	if err != nil {
		panic(err) // strings and a bool
	}
	return string(b)
}

// newTarget returns what r wants tokens for.
func newTarget(r Route, fail func(name, format string, args ...any)) target {
	t := target{Resource: r.Resource, Audience: r.Audience, Scopes: r.Scopes, Exchange: r.Grant == grantExchange}
	switch r.Grant {
	case "", grantRefresh, grantExchange:
	default:
		fail("Grant", "%q is neither %s nor %s", r.Grant, grantRefresh, grantExchange)
	}
	if r.Resource != "" {
		if err := checkResource(r.Resource); err != nil {
			fail("Resource", "%w", err)
		}
	}
	for _, scope := range r.Scopes {
		if scope == "" || strings.ContainsAny(scope, " \"\\") || !isFieldValue(scope) { // RFC 6749 3.3
			fail("Scopes", "%q is not a scope", scope)
		}
	}
	if t.key() == "" {
		if r.Grant != "" {
			fail("Grant", "there is nothing to ask for: the route names no resource, audience or scopes")
		}
		return target{}
	}
	if t.Exchange && r.Token == "client" {
		fail("Grant", "the broker's own token is asked for; there is no user's to exchange")
	}
	if r.Audience != "" && !t.Exchange && r.Token != "client" {
		fail("Audience", "a refresh cannot ask for it; with resource it can (RFC 8707), or write grant: %s (RFC 8693)", grantExchange)
	}
	if r.Token == "none" {
		fail("Token", "none has no use for a resource, an audience or scopes")
	}
	return t
}

// addTo adds what a token request has to say to get a token for the target.
func (t target) addTo(form url.Values) {
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

// The ways to a token for a target, as a Route names them.
const (
	grantRefresh  = "refresh-token"
	grantExchange = "token-exchange"
)

// target returns what a key stands for.
func (p *provider) target(key string) (target, error) {
	t, ok := p.targets[key]
	if !ok && key != "" {
		return target{}, &session.RefreshError{Err: fmt.Errorf("no route wants a token for %s", key)}
	}
	return t, nil
}
