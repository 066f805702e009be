package bfftest

import (
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
)

// Provider is an OpenID provider on a free port of the loopback interface. It
// has the users alice and bob, who need no password, and one client, the app.
//
// Its access tokens are JWTs (RFC 9068) that live for five minutes, with the
// audience "api" unless the authorization request names a resource (RFC 8707).
// It rotates refresh tokens.
type Provider struct {
	Issuer       string // as in iss
	ClientID     string // of the app
	ClientSecret string // for client_secret_basic or client_secret_post

	provider *brokertest.Provider
}

// NewProvider starts a provider for the app at an origin, for example
// http://localhost:8080. It stops when the test ends. The app's redirect URIs
// are /bff/callback and, after a logout, /bff/logout/callback.
func NewProvider(t testing.TB, origin string) *Provider {
	t.Helper()
	p := brokertest.NewProvider(t, origin)
	return &Provider{Issuer: p.Issuer, ClientID: p.Client.ID, ClientSecret: p.Client.Secret, provider: p}
}

// SetDown makes the provider close every connection without a response, until
// SetDown(t, false) or the end of the test.
func (p *Provider) SetDown(t testing.TB, down bool) {
	if down {
		p.provider.Misbehave(t, brokertest.ProviderDown)
		return
	}
	p.provider.Behave()
}

// Refreshes returns the number of refresh requests that the provider received,
// rejected ones included (RFC 6749, section 6).
func (p *Provider) Refreshes() int { return p.provider.Refreshes() }

// CheckLeaks fails the test if text contains the client secret or a token that
// the provider has issued. The name of the text is for the message.
//
//	provider.CheckLeaks(t, "the responses to the browser", browser.Received())
func (p *Provider) CheckLeaks(t testing.TB, name, text string) {
	t.Helper()
	p.provider.CheckLeaks(t, name, text)
}
