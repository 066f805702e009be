package oidc

import "maps"

// applyMap adds to claims those of Config.ClaimMap: name → the path of the
// value. All paths are looked up before any claim is added.
func applyMap(paths map[string]string, claims map[string]any) {
	mapped := make(map[string]any)
	for name, from := range paths {
		if value, ok := lookUp(claims, from); ok {
			mapped[name] = value
		}
	}
	maps.Copy(claims, mapped)
}

// lookUp returns the claim at a path of names, separated by dots. A name may
// contain dots itself.
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

// protocolClaims describe a token and not the user. Aggregated and distributed
// claims are never fetched (OpenID Connect Core, section 5.6.2): the issuer of
// the token would choose the URLs that this server requests.
var protocolClaims = map[string]bool{
	"iss": true, "aud": true, "azp": true, "exp": true, "iat": true, "nbf": true, "jti": true,
	"nonce": true, "at_hash": true, "c_hash": true, "s_hash": true, "typ": true,
	"sid": true, "session_expiry": true, "_claim_names": true, "_claim_sources": true,
}

// IsProtocolClaim reports whether a claim describes a token and not the user.
func IsProtocolClaim(name string) bool { return protocolClaims[name] }

// dropProtocolClaims removes the claims that do not describe the user.
func dropProtocolClaims(claims map[string]any) {
	maps.DeleteFunc(claims, func(name string, _ any) bool { return protocolClaims[name] })
}
