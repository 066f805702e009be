package bff

import (
	"strings"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
)

// newTarget returns what r wants tokens for.
func newTarget(r Route, fail failFunc) oidc.Target {
	t := oidc.Target{Resource: r.Resource, Audience: r.Audience, Scopes: r.Scopes,
		Exchange: r.Grant == GrantTokenExchange}
	switch r.Grant {
	case "", GrantRefreshToken, GrantTokenExchange:
	default:
		fail("Grant", r.Grant, "%q is neither %s nor %s", r.Grant, GrantRefreshToken, GrantTokenExchange)
	}
	if r.Resource != "" {
		if err := oidc.CheckResource(r.Resource); err != nil {
			fail("Resource", r.Resource, "%w", err)
		}
	}
	for _, scope := range r.Scopes {
		if scope == "" || strings.ContainsAny(scope, " \"\\") || !isFieldValue(scope) { // RFC 6749 3.3
			fail("Scopes", scope, "%q is not a scope", scope)
		}
	}
	if t.Key() == "" {
		if r.Grant != "" {
			fail("Grant", r.Grant, "the route needs resource, audience or scopes with it")
		}
		return oidc.Target{}
	}
	if t.Exchange && r.Token == TokenClient {
		fail("Grant", r.Grant, "it is for the user's token, and the route uses the broker's own")
	}
	if r.Audience != "" && !t.Exchange && r.Token != TokenClient {
		fail("Audience", r.Audience, "a refresh cannot request an audience; set resource instead (RFC 8707), or "+
			"grant: %s (RFC 8693)", GrantTokenExchange)
	}
	if r.Token == TokenNone {
		fail("Token", r.Token, "none has no use for a resource, an audience or scopes")
	}
	return t
}
