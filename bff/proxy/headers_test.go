package proxy

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
)

// What a caller sets arrives once, instead of the client's, unless only the
// proxy may say it.
func TestSetHeader(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "h2c"} {
		arrived := make(chan http.Header, 1)
		upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			arrived <- r.Header
		}))
		upstream.Config.Protocols = new(http.Protocols)
		upstream.Config.Protocols.SetHTTP1(true)
		upstream.Config.Protocols.SetUnencryptedHTTP2(true)
		upstream.Start()
		t.Cleanup(upstream.Close)
		p, err := New(Upstream{URLs: []string{scheme + "://" + upstream.Listener.Addr().String()}, Path: "/"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		r := httptest.NewRequest("GET", "http://app.example/", nil)
		r.Header = http.Header{"X-Tenant": {"client"}, "Accept": {"a", "b"}, "Via": {"1.0 edge"}}
		err = p.Forward(httptest.NewRecorder(), r, Options{Client: "192.0.2.1", SetHeader: func(h http.Header) {
			if len(h) > 0 {
				t.Errorf("SetHeader got %q", h)
			}
			h["X-Tenant"] = []string{"caller"}
			for _, name := range []string{"Host", "Authorization", "X-Forwarded-For", "Content-Length", "Cookie"} {
				h[name] = []string{"7"}
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		want := http.Header{
			"X-Tenant": {"caller"}, "Accept": {"a", "b"}, "Via": {"1.0 edge", "1.1 cloakroom"},
			"X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Host": {"app.example"}, "X-Forwarded-Proto": {"http"},
		}
		if got := <-arrived; !maps.EqualFunc(got, want, slices.Equal) {
			t.Errorf("%s: got %q, want %q", scheme, got, want)
		}
	}
}
