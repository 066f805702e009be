package devidp

import (
	"net/http"
	"net/url"
)

// Hooks are the places where a test can make the provider wrong. A nil field
// leaves it right. Maps are edited in place. Every hook may be called by
// several requests at once.
type Hooks struct {
	// Intercept answers in the place of next, before it, after it, or never. To
	// hold the refreshes until a channel is closed:
	//
	//	func(w http.ResponseWriter, r *http.Request, next http.Handler) {
	//		if r.PostFormValue("grant_type") == "refresh_token" {
	//			<-release
	//		}
	//		next.ServeHTTP(w, r)
	//	}
	//
	// To lose an answer after the request was processed, give next an
	// httptest.NewRecorder, and panic with http.ErrAbortHandler.
	Intercept func(w http.ResponseWriter, r *http.Request, next http.Handler)

	EditDiscovery     func(metadata map[string]any)
	EditJWKS          func(set map[string]any)
	EditCallback      func(answer url.Values) // the parameters of an authorization response, of an error too
	EditTokenResponse func(grantType string, status int, body map[string]any)
	EditUserinfo      func(claims map[string]any)
	EditIDToken       func(header, claims map[string]any)
	EditAccessToken   func(header, claims map[string]any)
	EditLogoutToken   func(header, claims map[string]any)

	// SignIDToken and its like sign in the place of the provider's key, after
	// the edits. See Provider.Sign and SigningInput.
	SignAccessToken func(header, claims map[string]any) (string, error)
	SignIDToken     func(header, claims map[string]any) (string, error)
	SignUserinfo    func(header, claims map[string]any) (string, error)
	SignLogoutToken func(header, claims map[string]any) (string, error)

	// KeepRefreshTokens makes a refresh leave the refresh token as it is: the
	// answer holds none.
	KeepRefreshTokens bool

	// SkipPKCE takes authorization requests without a code_challenge, and
	// redeems codes whatever the code_verifier is.
	SkipPKCE bool
}

// SetHooks puts hooks in force, in the place of those before.
func (p *Provider) SetHooks(h Hooks) { p.hooks.Store(&h) }
