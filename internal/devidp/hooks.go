package devidp

import (
	"net/http"
	"net/url"
)

// Hooks make the provider misbehave for a test. A nil field changes nothing.
// Maps are edited in place. A hook may be called concurrently.
type Hooks struct {
	// Intercept wraps the handler next. To hold refreshes until a channel is
	// closed:
	//
	//	func(w http.ResponseWriter, r *http.Request, next http.Handler) {
	//		if r.PostFormValue("grant_type") == "refresh_token" {
	//			<-release
	//		}
	//		next.ServeHTTP(w, r)
	//	}
	//
	// To lose a response after the request was processed, pass an
	// httptest.NewRecorder to next, and panic with http.ErrAbortHandler.
	Intercept func(w http.ResponseWriter, r *http.Request, next http.Handler)

	EditDiscovery     func(metadata map[string]any)
	EditJWKS          func(set map[string]any)
	EditCallback      func(response url.Values) // of an authorization response or error
	EditTokenResponse func(grantType string, status int, body map[string]any)
	EditUserinfo      func(claims map[string]any)
	EditIDToken       func(header, claims map[string]any)
	EditAccessToken   func(header, claims map[string]any)
	EditLogoutToken   func(header, claims map[string]any)

	// SignIDToken and similar hooks sign instead of the provider, after the
	// edits. See Provider.Sign and SigningInput.
	SignAccessToken func(header, claims map[string]any) (string, error)
	SignIDToken     func(header, claims map[string]any) (string, error)
	SignUserinfo    func(header, claims map[string]any) (string, error)
	SignLogoutToken func(header, claims map[string]any) (string, error)

	// KeepRefreshTokens disables rotation: a refresh response has no refresh
	// token.
	KeepRefreshTokens bool

	// SkipPKCE accepts authorization requests without a code_challenge, and any
	// code_verifier.
	SkipPKCE bool
}

// SetHooks replaces the hooks.
func (p *Provider) SetHooks(h Hooks) { p.hooks.Store(&h) }
