package bfftest

import (
	"html"
	"net/url"
	"regexp"
	"strings"
)

// SignIn goes through a login at the development provider as one of its users, and returns the app's answer to the callback.
// Query is what the login link has besides, "return_to=/x" say.
func (b *Browser) SignIn(user, query string) *Response {
	b.t.Helper()
	return b.Navigate(b.AuthResponse(user, query).Location(b.t).String())
}

// AuthResponse goes through a login as far as the provider's redirect back to the app, and returns that redirect.
func (b *Browser) AuthResponse(user, query string) *Response {
	b.t.Helper()
	path := "/bff/login"
	if query != "" {
		path += "?" + query
	}
	a := b.Navigate(path)
	if a.StatusCode != 302 {
		b.t.Fatalf("GET %s: got %d, want 302 to the provider:\n%s", path, a.StatusCode, a.Text)
	}
	return b.Pick(user, a.Location(b.t).String())
}

var hidden = regexp.MustCompile(`<input[^>]*type="hidden"[^>]*>`)
var attribute = regexp.MustCompile(`(name|value)="([^"]*)"`)

// Pick opens an authorization URL, picks a user on the provider's page if there is one, and returns the redirect back to the app.
func (b *Browser) Pick(user, authorizationURL string) *Response {
	b.t.Helper()
	back := b.base + "/"
	a := b.Follow(b.Navigate(authorizationURL), back)
	if a.StatusCode/100 == 3 {
		return a // the provider knew who it was
	}
	if a.StatusCode != 200 || !strings.Contains(a.Text, `name="user"`) {
		b.t.Fatalf("GET %s: got %d, want the page to pick a user:\n%s", a.Request.URL, a.StatusCode, a.Text)
	}
	form := HiddenFields(a.Text)
	form.Set("user", user)
	return b.Follow(b.Submit(a.Request.URL.String(), form), back)
}

// HiddenFields returns those of the forms on a page.
func HiddenFields(page string) url.Values {
	form := make(url.Values)
	for _, input := range hidden.FindAllString(page, -1) {
		var name, value string
		for _, m := range attribute.FindAllStringSubmatch(input, -1) {
			if m[1] == "name" {
				name = m[2]
			} else {
				value = html.UnescapeString(m[2])
			}
		}
		form.Add(name, value)
	}
	return form
}
