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

// Browser is an HTTP client that sends what a browser sends: cookies from a jar of its own, and the Sec-Fetch headers of
// what it is doing. It follows no redirect, so that a test sees each step.
type Browser struct {
	t      testing.TB
	base   string // the app's origin
	client *http.Client

	mu   sync.Mutex // guards seen
	seen strings.Builder
}

// NewBrowser returns a browser whose app is at base, a URL without a path.
func NewBrowser(t testing.TB, base string) *Browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	// Of its own: closing a test server closes the idle connections of the default
	// transport, which can fail a request of another test.
	transport := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(transport.CloseIdleConnections)
	return &Browser{t: t, base: base, client: &http.Client{
		Jar: jar, Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Answer is a response whose body has been read.
type Response struct {
	*http.Response
	Text string
}

// Location returns where a redirect leads, as an absolute URL.
func (a *Response) Location(t testing.TB) *url.URL {
	t.Helper()
	u, err := a.Response.Location()
	if err != nil {
		t.Fatalf("%s %s: got %d without a Location, want a redirect:\n%s", a.Request.Method, a.Request.URL.Path, a.StatusCode, a.Text)
	}
	return u
}

// Decode reads the body as JSON.
func (a *Response) Decode(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.Text), v); err != nil {
		t.Fatalf("%s %s: got %d with a body that is not JSON: %v\n%s", a.Request.Method, a.Request.URL.Path, a.StatusCode, err, a.Text)
	}
}

// Code returns the code of a problem+json answer, and "" for every other.
func (a *Response) Code() string {
	if a.Header.Get("Content-Type") != "application/problem+json" {
		return ""
	}
	var p struct{ Code string }
	json.Unmarshal([]byte(a.Text), &p)
	return p.Code
}

// Navigate goes to a URL as the user does: a path is one of the app's.
func (b *Browser) Navigate(target string, header ...string) *Response {
	b.t.Helper()
	return b.Do("GET", target, "", append([]string{
		"Accept", "text/html,application/xhtml+xml,*/*;q=0.8",
		"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "none",
	}, header...)...)
}

// Fetch calls a path as a script of the app does through the browser client.
func (b *Browser) Fetch(method, path string, header ...string) *Response {
	b.t.Helper()
	return b.Do(method, path, "", append([]string{
		"Accept", "application/json", "X-CSRF", "1",
		"Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty", "Sec-Fetch-Site", "same-origin",
	}, header...)...)
}

// Submit posts a form of the page at the same URL.
func (b *Browser) Submit(target string, form url.Values) *Response {
	b.t.Helper()
	u, err := url.Parse(b.absolute(target))
	if err != nil {
		b.t.Fatal(err)
	}
	return b.Do("POST", target, form.Encode(),
		"Content-Type", "application/x-www-form-urlencoded", "Accept", "text/html",
		"Origin", u.Scheme+"://"+u.Host, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "same-origin")
}

// Do sends one request. Headers are name, value, name, value; the last value of a name counts, and an empty one takes the header away.
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
	req.Host = req.Header.Get("Host") // for a replica that listens elsewhere than the browser thinks
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	b.see(resp, text)
	return &Response{resp, string(text)}
}

// Abort calls a path as Fetch does, and leaves when the channel is closed.
func (b *Browser) Abort(method, path string, when <-chan struct{}) {
	ctx, leave := context.WithCancel(b.t.Context())
	defer leave()
	go func() {
		<-when
		leave()
	}()
	req, err := http.NewRequestWithContext(ctx, method, b.absolute(path), nil)
	if err != nil {
		b.t.Error(err)
		return
	}
	req.Header.Set("X-CSRF", "1")
	if resp, err := b.client.Do(req); err == nil {
		resp.Body.Close()
		b.t.Errorf("%s %s was answered with %d before anybody left", method, path, resp.StatusCode)
	}
}

// Open opens a stream as an EventSource does. The caller closes its body.
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

var hint = regexp.MustCompile(`id_token_hint=[\w.-]+`)

// see remembers what came from the app. The hint that a logout takes along to the provider is an ID token by its nature; it is left out.
func (b *Browser) see(resp *http.Response, body []byte) {
	if !strings.HasPrefix(resp.Request.URL.String(), b.base+"/") {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var all bytes.Buffer
	resp.Header.Write(&all)
	all.Write(body)
	b.seen.Write(hint.ReplaceAll(all.Bytes(), nil))
}

// Seen returns all that came from the app, headers and bodies.
func (b *Browser) Seen() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen.String()
}

// Follow navigates from redirect to redirect, until an answer is none or leads to the prefix stop, and returns the last answer and the URL it leads to.
func (b *Browser) Follow(a *Response, stop string) *Response {
	b.t.Helper()
	for range 10 {
		if a.StatusCode/100 != 3 {
			return a
		}
		next := a.Location(b.t).String()
		if stop != "" && strings.HasPrefix(next, stop) {
			return a
		}
		a = b.Navigate(next)
	}
	b.t.Fatal("ten redirects, and no end to them")
	return nil
}

// Cookies returns the app's cookies.
func (b *Browser) Cookies() []*http.Cookie {
	u, err := url.Parse(b.base)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.client.Jar.Cookies(u)
}

// SetCookie plants a cookie at the app.
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

// Trust has the browser believe certificates.
func (b *Browser) Trust(roots *x509.CertPool) {
	b.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
}

// DropCookies forgets the app's cookies, as a user can.
func (b *Browser) DropCookies() {
	for _, c := range b.Cookies() {
		b.SetCookie(&http.Cookie{Name: c.Name, Path: "/", MaxAge: -1})
	}
}

// CookiesFor returns the cookies that would be sent to a URL.
func (b *Browser) CookiesFor(u *url.URL) []*http.Cookie { return b.client.Jar.Cookies(u) }
