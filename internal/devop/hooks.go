package devop

import (
	"net/http"
	"net/url"
)

// Hooks are the places where a test can make the provider wrong. A nil field leaves it right. Maps are edited in place.
type Hooks struct {
	// Intercept answers in the place of next, before it, after it, or never.
	Intercept func(w http.ResponseWriter, r *http.Request, next http.Handler)

	EditDiscovery     func(metadata map[string]any)
	EditJWKS          func(set map[string]any)
	EditCallback      func(answer url.Values)
	EditIDToken       func(header, claims map[string]any)
	EditAccessToken   func(header, claims map[string]any)
	EditLogoutToken   func(header, claims map[string]any)
	EditTokenResponse func(grantType string, status int, body map[string]any)
	EditUserinfo      func(claims map[string]any)

	// KeepRefreshTokens makes a refresh leave the refresh token as it is: the answer holds none.
	KeepRefreshTokens bool

	// SignIDToken signs instead of the provider's own key.
	SignIDToken func(header, claims map[string]any) (string, error)
}

// SetHooks puts hooks in force, in the place of those before.
func (p *Provider) SetHooks(h Hooks) { p.hooks.Store(&h) }
