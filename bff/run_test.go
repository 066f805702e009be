package bff_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// slowApp returns a frontend that responds after release, and a channel that
// receives when a request has arrived.
func slowApp(t *testing.T) (app http.Handler, arrived <-chan struct{}, release func()) {
	requests, released := make(chan struct{}, 10), make(chan struct{})
	release = sync.OnceFunc(func() { close(released) })
	t.Cleanup(release)
	app = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- struct{}{}
		<-released
		io.WriteString(w, "finished")
	})
	return app, requests, release
}

// get requests a path of a broker at an address, and returns the body of the
// response.
func (a *app) get(address, path string) (string, error) {
	req, err := http.NewRequest("GET", "http://"+address+path, nil)
	if err != nil {
		return "", err
	}
	req.Host = strings.TrimPrefix(a.url, "http://")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestRunServesItsListenersAndDrainsRequests(t *testing.T) {
	t.Parallel()
	frontend, arrived, release := slowApp(t)
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.Frontend = frontend
		cfg = *c
	})
	server, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	first, second := listen(t), listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- server.Run(ctx, first, second) }()
	bodies := make(chan string, 2)
	for _, l := range []net.Listener{first, second} {
		go func() {
			body, err := a.get(l.Addr().String(), "/")
			if err != nil {
				body = err.Error()
			}
			bodies <- body
		}()
		<-arrived
	}
	cancel()
	waitFor(t, "the listeners are closed", func() bool {
		conn, err := net.Dial("tcp", first.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	select {
	case err := <-result:
		t.Fatalf("Run returned %v with requests in flight", err)
	default:
	}
	release()
	for range 2 {
		if body := <-bodies; body != "finished" {
			t.Errorf("a request in flight: got %q", body)
		}
	}
	if err := <-result; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// Without listeners another http.Server serves. Run still waits for the
// requests.
func TestRunWithoutListenersWaitsForRequests(t *testing.T) {
	t.Parallel()
	frontend, arrived, release := slowApp(t)
	a := newApp(t, func(_ *app, cfg *bff.Config) { cfg.Frontend = frontend })
	body := make(chan string, 1)
	go func() {
		text, _ := a.get(strings.TrimPrefix(a.url, "http://"), "/")
		body <- text
	}()
	<-arrived
	stopped := make(chan error, 1)
	go func() { stopped <- a.stop() }()
	waitFor(t, "the shutdown has begun", func() bool { return strings.Contains(a.logs.String(), "shutting down") })
	select {
	case err := <-stopped:
		t.Fatalf("Run returned %v with a request in flight", err)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	if text := <-body; text != "finished" {
		t.Errorf("the request in flight: got %q", text)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestRunReportsAListenerThatFails(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	server, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	good, bad := listen(t), listen(t)
	bad.Close()
	err = server.Run(t.Context(), good, bad)
	if err == nil || !strings.Contains(err.Error(), bad.Addr().String()) {
		t.Errorf("got %v, want an error that names %s", err, bad.Addr())
	}
	if conn, err := net.Dial("tcp", good.Addr().String()); err == nil {
		conn.Close()
		t.Error("the other listener is open")
	}
	if err := server.Run(t.Context()); err == nil {
		t.Error("a second Run succeeded")
	}
}

func TestReloadNeedsRun(t *testing.T) {
	t.Parallel()
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) { cfg = *c })
	newServer := func() *bff.Server {
		server, err := bff.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return server
	}
	if err := newServer().Reload(t.Context(), newServer()); err == nil {
		t.Error("Reload before Run succeeded")
	}
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	if err := a.server.Reload(t.Context(), newServer()); err == nil {
		t.Error("Reload after Run succeeded")
	}
}

// What was received before a Reload ends under the configuration before, also
// without a session; what comes later is served under the next.
func TestReloadDropsNoRequest(t *testing.T) {
	t.Parallel()
	frontend, arrived, release := slowApp(t)
	var cfg bff.Config
	a := newApp(t, func(_ *app, c *bff.Config) {
		c.Frontend = frontend
		cfg = *c
	})
	host := strings.TrimPrefix(a.url, "http://")
	body := make(chan string, 1)
	go func() {
		text, _ := a.get(host, "/")
		body <- text
	}()
	<-arrived
	b := a.signedIn()
	cfg.Frontend = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "next") })
	next, err := bff.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.server.Reload(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if text, err := a.get(host, "/"); text != "next" {
		t.Errorf("after Reload: got %q, %v", text, err)
	}
	a.wantSession(b, "alice")
	release()
	if text := <-body; text != "finished" {
		t.Errorf("the request from before: got %q", text)
	}
}
