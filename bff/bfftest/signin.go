package bfftest

import (
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

// SignIn signs a user of a Provider in, "alice" or "bob", and returns the app's
// response to the callback: 303 to the page that the user came from. The query
// is added to the login URL, for example return_to=/orders; it may be empty.
// The endpoints of the broker are under /bff, the default of Config.Prefix.
func (b *Browser) SignIn(user, query string) *Response {
	b.t.Helper()
	return b.Navigate(b.AuthResponse(user, query).Location(b.t).String())
}

// AuthResponse does what SignIn does up to the provider's
// authorization response (RFC 6749, section 4.1.2), and returns it: the
// redirect to the callback, which is not followed.
func (b *Browser) AuthResponse(user, query string) *Response {
	b.t.Helper()
	path := "/bff/login"
	if query != "" {
		path += "?" + query
	}
	r := b.Navigate(path)
	if r.StatusCode != 302 {
		b.t.Fatalf("GET %s: got %d, want 302 to the provider:\n%s", path, r.StatusCode, r.Text)
	}
	return b.Authorize(user, r.Location(b.t).String())
}

// Authorize opens an authorization URL of a Provider, selects the user on the
// page unless the provider has a session, and returns the authorization
// response, which is not followed.
func (b *Browser) Authorize(user, authorizationURL string) *Response {
	b.t.Helper()
	callback := b.base + "/"
	r := b.Follow(b.Navigate(authorizationURL), callback)
	if r.StatusCode/100 == 3 {
		return r // the provider has a session
	}
	if r.StatusCode != 200 || !strings.Contains(r.Text, `name="user"`) {
		b.t.Fatalf("GET %s: got %d, want the page to select a user:\n%s", r.Request.URL, r.StatusCode, r.Text)
	}
	form := brokertest.HiddenFields(r.Text)
	form.Set("user", user)
	return b.Follow(b.Submit(r.Request.URL.String(), form), callback)
}
