// Package bfftest runs tests of an application that package bff serves. A test
// has a Server, which is a broker with an OpenID provider of its own, and a
// Browser, in which a user signs in and calls the application's APIs:
//
//	app := bfftest.NewServer(t, func(cfg *bff.Config) {
//		cfg.Routes = []bff.Route{{Path: "/api/", Upstream: []string{api.URL}, Token: "user"}}
//	})
//	browser := bfftest.NewBrowser(t, app.URL)
//	browser.SignIn("alice", "")
//	response := browser.Fetch("GET", "/api/orders")
//
// A test of a program that runs the broker itself, or another implementation of
// its endpoints, uses Provider and Browser without Server. Nothing in this
// package is safe outside of tests: any client can sign in as any user.
package bfftest

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// Server is a broker that listens on a free port of the loopback interface.
type Server struct {
	URL      string // the origin of the app: Config.PublicURL
	Broker   *bff.Server
	Provider *Provider // at which users of the app sign in
}

// NewServer starts a broker and its provider. Both stop when the test ends.
//
// The function configure completes the configuration; nil leaves it as it is.
// It receives one that has everything but Routes and Frontend: PublicURL,
// Provider, a Memory as the store, a key for sessions, and a Logger that writes
// to the output of the test. PublicURL stays as it is.
//
// The test fails if the configuration has mistakes, or if the provider cannot
// be discovered within 20 seconds.
func NewServer(t testing.TB, configure func(*bff.Config)) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{URL: "http://localhost:" + port}
	s.Provider = NewProvider(t, s.URL)
	cfg := bff.Config{
		PublicURL: s.URL,
		Provider: bff.ProviderConfig{
			Issuer:       s.Provider.Issuer,
			ClientID:     s.Provider.ClientID,
			ClientSecret: session.Secret(s.Provider.ClientSecret),
		},
		Sessions: session.Config{
			Store: new(tokenstore.Memory),
			Keys:  [][]byte{bytes.Repeat([]byte("k"), 32)},
		},
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if configure != nil {
		configure(&cfg)
	}
	if s.Broker, err = bff.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Broker.Run(ctx, l) }() // until stop
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("run the broker: %v", err)
		}
	})
	discovery, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Broker.WaitForProvider(discovery); err != nil {
		t.Fatalf("discover the provider: %v", err)
	}
	return s
}
