package bff_test

import (
	"net/http"
	"testing"
)

// A browser updates a stored response with the headers of a 304 (RFC 9111,
// section 3.2). That must not remove the sandbox of a document, whatever type
// the 304 has.
func TestNotModifiedKeepsTheSandbox(t *testing.T) {
	t.Parallel()
	u := newScriptedUpstream(t)
	eachProtocol(t, u.url,
		func(t *testing.T, get func(method, path string, header ...string) (*http.Response, string, error)) {
			for _, contentType := range []string{"application/json", "text/plain", "image/png", "application/pdf"} {
				u.respond("HTTP/1.1 304 Not Modified\nETag: \"x\"\nContent-Type: " + contentType +
					"\nContent-Security-Policy: default-src *\nX-Content-Type-Options: off\n\n")
				resp, _, err := get("GET", "/x/y")
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range []string{"Content-Type", "Content-Security-Policy", "X-Content-Type-Options"} {
					if got := resp.Header.Values(name); len(got) > 0 {
						t.Errorf("%s: %s: got %q, want none", contentType, name, got)
					}
				}
			}
		})
}
