package oidc

import (
	"maps"
)

// applyMap adds the claims of a map: name → the path of the value.
func applyMap(paths map[string]string, claims map[string]any) {
	mapped := make(map[string]any)
	for name, from := range paths {
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

// protocolClaims speak of a token and not of the user. Claims that are elsewhere are not fetched from there (Core 5.6.2): whoever wrote the token would
// choose what we call.
var protocolClaims = map[string]bool{
	"iss": true, "aud": true, "azp": true, "exp": true, "iat": true, "nbf": true, "nonce": true, "at_hash": true, "c_hash": true, "s_hash": true, "jti": true,
	"sid": true, "session_expiry": true, "typ": true, "_claim_names": true, "_claim_sources": true,
}

// IsProtocolClaim reports whether a claim speaks of a token and not of the user.
func IsProtocolClaim(name string) bool { return protocolClaims[name] }

// dropProtocolClaims leaves the claims that speak of the user.
func dropProtocolClaims(claims map[string]any) {
	maps.DeleteFunc(claims, func(name string, _ any) bool { return protocolClaims[name] })
}
