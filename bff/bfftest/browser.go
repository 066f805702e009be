package bfftest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// Browser is an HTTP client that sends what a browser sends: the cookies of its
// own jar, and the Fetch Metadata headers (Sec-Fetch-Site and so on) of a
// request of that kind. It follows no redirects, so that a test sees each
// response.
//
// A request that gets no response fails the test. Two browsers are two users;
// the methods of one may be called concurrently.
type Browser struct {
	t      testing.TB
	base   string // the app's origin
	client *http.Client

	mu       sync.Mutex // guards received
	received strings.Builder
}

// NewBrowser returns a browser for the app at an origin, for example
// http://localhost:8080. Paths in its methods are paths of that origin.
func NewBrowser(t testing.TB, origin string) *Browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	// Of its own: closing a test server closes the idle connections of the
	// default transport, which can fail a request of another test.
	transport := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(transport.CloseIdleConnections)
	return &Browser{t: t, base: origin, client: &http.Client{
		Jar: jar, Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Response is a response whose body has been read into Text.
type Response struct {
	*http.Response
	Text string // the body
}

// Location returns the absolute URL in the Location header. Without the header
// the test fails.
func (r *Response) Location(t testing.TB) *url.URL {
	t.Helper()
	u, err := r.Response.Location()
	if err != nil {
		t.Fatalf("%s %s: got %d without a Location, want a redirect:\n%s",
			r.Request.Method, r.Request.URL.Path, r.StatusCode, r.Text)
	}
	return u
}

// Decode decodes the body, which is JSON, into v. It fails the test if it
// cannot.
func (r *Response) Decode(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.Text), v); err != nil {
		t.Fatalf("%s %s: got %d with a body that is not JSON: %v\n%s",
			r.Request.Method, r.Request.URL.Path, r.StatusCode, err, r.Text)
	}
}

// Code returns the code of a problem (RFC 9457), for example "not_signed_in",
// also if it is shown as a page, and "" for any other response.
func (r *Response) Code() string {
	if shown := pageCode.FindStringSubmatch(r.Text); shown != nil {
		return shown[1]
	}
	if r.Header.Get("Content-Type") != "application/problem+json" {
		return ""
	}
	var p struct{ Code string }
	json.Unmarshal([]byte(r.Text), &p)
	return p.Code
}

// pageCode finds the code in the footer of an error page.
var pageCode = regexp.MustCompile(`<footer>[^<]*<code>([a-z_]+)</code>`)

// Navigate sends the GET request of a navigation that the user starts, by
// typing the URL. The target is a path of the app, or a URL. Headers are added
// as in Do.
func (b *Browser) Navigate(target string, header ...string) *Response {
	b.t.Helper()
	return b.Do("GET", target, "", append([]string{
		"Accept", "text/html,application/xhtml+xml,*/*;q=0.8",
		"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "none",
	}, header...)...)
}

// Fetch sends a request without a body as the app's script does with the
// browser client: with the CSRF header and, unless headers say otherwise, for
// JSON.
func (b *Browser) Fetch(method, path string, header ...string) *Response {
	b.t.Helper()
	return b.Do(method, path, "", append([]string{
		"Accept", "application/json", "X-CSRF", "1",
		"Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty", "Sec-Fetch-Site", "same-origin",
	}, header...)...)
}

// Submit sends a form to the URL of the page that it is on.
func (b *Browser) Submit(target string, form url.Values) *Response {
	b.t.Helper()
	u, err := url.Parse(b.absolute(target))
	if err != nil {
		b.t.Fatal(err)
	}
	return b.Do("POST", target, form.Encode(),
		"Content-Type", "application/x-www-form-urlencoded",
		"Accept", "text/html",
		"Origin", u.Scheme+"://"+u.Host,
		"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "same-origin")
}

// Do sends any request. The target is a path of the app, or a URL. Headers are
// pairs: name, value, name, value. The last value of a name is used; an empty
// one removes the header.
func (b *Browser) Do(method, target, body string, header ...string) *Response {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.absolute(target), strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i+1] == "" {
			req.Header.Del(header[i])
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	req.Host = req.Header.Get("Host") // empty: that of the URL
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	b.record(resp, text)
	return &Response{resp, string(text)}
}

// Abort sends a request with the CSRF header, and aborts it when the channel is
// closed. A response before that fails the test.
func (b *Browser) Abort(method, path string, when <-chan struct{}) {
	ctx, cancel := context.WithCancel(b.t.Context())
	defer cancel()
	go func() { // until ctx ends
		select {
		case <-when:
			cancel()
		case <-ctx.Done():
		}
	}()
	req, err := http.NewRequestWithContext(ctx, method, b.absolute(path), nil)
	if err != nil {
		b.t.Error(err)
		return
	}
	req.Header.Set("X-CSRF", "1")
	if resp, err := b.client.Do(req); err == nil {
		resp.Body.Close()
		b.t.Errorf("%s %s: got %d before the request was aborted", method, path, resp.StatusCode)
	}
}

// Open opens an event stream as an EventSource does, and returns its response,
// whose body the caller reads and closes.
func (b *Browser) Open(path string) *http.Response {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), "GET", b.absolute(path), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp
}

var idTokenHint = regexp.MustCompile(`id_token_hint=[\w.-]+`)

// record keeps what the app sent, for Received. It omits id_token_hint, an ID
// token that the redirect of a logout has to contain (OpenID Connect
// RP-Initiated Logout, section 2).
func (b *Browser) record(resp *http.Response, body []byte) {
	if !strings.HasPrefix(resp.Request.URL.String(), b.base+"/") {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var all bytes.Buffer
	resp.Header.Write(&all)
	all.Write(body)
	b.received.Write(idTokenHint.ReplaceAll(all.Bytes(), nil))
}

// Received returns the headers and bodies of all responses of the app. See
// Provider.CheckLeaks.
func (b *Browser) Received() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.received.String()
}

// Follow follows redirects from the response r, and returns the first response
// that is not a redirect, or whose Location begins with stop. An empty stop
// means none. More than ten redirects fail the test.
func (b *Browser) Follow(r *Response, stop string) *Response {
	b.t.Helper()
	for range 10 {
		if r.StatusCode/100 != 3 {
			return r
		}
		next := r.Location(b.t).String()
		if stop != "" && strings.HasPrefix(next, stop) {
			return r
		}
		r = b.Navigate(next)
	}
	b.t.Fatal("got more than ten redirects in a row")
	return nil
}

// Cookies returns the cookies that the browser sends to the app, each with its
// name and value only.
func (b *Browser) Cookies() []*http.Cookie {
	u, err := url.Parse(b.base)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.client.Jar.Cookies(u)
}

// SetCookie stores a cookie as if the app had set it.
func (b *Browser) SetCookie(c *http.Cookie) {
	u, err := url.Parse(b.base)
	if err != nil {
		b.t.Fatal(err)
	}
	b.client.Jar.SetCookies(u, []*http.Cookie{c})
}

func (b *Browser) absolute(target string) string {
	if strings.HasPrefix(target, "/") {
		return b.base + target
	}
	return target
}

// TrustRoots makes the browser accept certificates of these authorities, and of
// no other.
func (b *Browser) TrustRoots(roots *x509.CertPool) {
	b.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
}

// ClearCookies deletes the cookies of the app, but not those of the provider.
func (b *Browser) ClearCookies() {
	for _, c := range b.Cookies() {
		b.SetCookie(&http.Cookie{Name: c.Name, Path: "/", MaxAge: -1})
	}
}

// CookiesFor returns the cookies that the browser sends to a URL.
func (b *Browser) CookiesFor(u *url.URL) []*http.Cookie { return b.client.Jar.Cookies(u) }
