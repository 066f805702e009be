package bff

import (
	"encoding/json"
	"errors"
	"maps"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Claims says what becomes of what the provider tells of the user.
type Claims struct {
	// Allow are the claims that the app sees at /session; empty: all. Routes see all of them.
	Allow []string
	// Map adds claims under names of the operator's choice: name → where the value is. That is the name of a claim, or the way to it in objects:
	// realm_access.roles.
	Map map[string]string
}

func (c *Claims) check() error {
	var errs []error
	for name, from := range c.Map {
		if name == "" || from == "" || protocolClaims[name] || name == "sub" {
			errs = append(errs, &session.FieldError{Field: "Claims.Map", Err: errors.New(`"` + name + `" is not a name to map a claim to`)})
		}
	}
	return errors.Join(errs...)
}

// add adds the mapped claims.
func (c *Claims) add(claims map[string]any) {
	mapped := make(map[string]any)
	for name, from := range c.Map {
		if value, ok := lookUp(claims, from); ok {
			mapped[name] = value
		}
	}
	maps.Copy(claims, mapped)
}

// lookUp finds a claim: by its name, which may hold dots, or by the way to it.
func lookUp(claims map[string]any, path string) (any, bool) {
	if value, ok := claims[path]; ok {
		return value, true
	}
	for at := range len(path) {
		if path[at] != '.' {
			continue
		}
		if inner, ok := claims[path[:at]].(map[string]any); ok {
			if value, ok := lookUp(inner, path[at+1:]); ok {
				return value, true
			}
		}
	}
	return nil, false
}

// shown returns the claims that the app may see.
func (c *Claims) shown(user json.RawMessage) (json.RawMessage, error) {
	if len(c.Allow) == 0 {
		return user, nil
	}
	var all, some map[string]json.RawMessage
	if err := json.Unmarshal(user, &all); err != nil {
		return nil, err
	}
	some = make(map[string]json.RawMessage)
	for _, name := range c.Allow {
		if value, ok := all[name]; ok {
			some[name] = value
		}
	}
	return json.Marshal(some)
}

// protocolClaims speak of a token and not of the user. Claims that are elsewhere are not fetched from there (Core 5.6.2): whoever wrote the token would
// choose what we call.
var protocolClaims = map[string]bool{
	"iss": true, "aud": true, "azp": true, "exp": true, "iat": true, "nbf": true, "nonce": true, "at_hash": true, "c_hash": true, "s_hash": true, "jti": true,
	"sid": true, "session_expiry": true, "typ": true, "_claim_names": true, "_claim_sources": true,
}

// ofUser leaves the claims that speak of the user.
func ofUser(claims map[string]any) {
	maps.DeleteFunc(claims, func(name string, _ any) bool { return protocolClaims[name] })
}
