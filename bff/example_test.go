package bff_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
	"github.com/cloakroom-bff/cloakroom/web"
)

// A broker for one app and one API. It needs a provider at the issuer's URL.
func Example() {
	key, err := base64.StdEncoding.DecodeString(os.Getenv("SESSION_KEY")) // cloakroom keygen
	check(err)
	store, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: "redis://localhost:6379/0"})
	check(err)
	app, err := web.New(web.Config{Dir: "dist", ErrorPage: bff.ErrorPage})
	check(err)
	broker, err := bff.New(bff.Config{
		PublicURL: "http://localhost:8080",
		Provider: bff.ProviderConfig{Issuer: "https://id.example.com", ClientID: "spa",
			ClientSecret: session.Secret(os.Getenv("CLIENT_SECRET"))},
		Sessions: session.Config{Store: store, Keys: [][]byte{key}},
		Routes:   []bff.Route{{Path: "/api/", Upstream: []string{"http://localhost:9000"}, Token: bff.TokenUser}},
		Frontend: app, Client: web.Client(),
	})
	check(err)
	listener, err := net.Listen("tcp", "localhost:8080")
	check(err)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	check(broker.Run(ctx, listener)) // until Ctrl-C
}

// A Go handler beside the broker that only signed-in users can call.
func ExampleServer_RequireSession() {
	broker, err := bff.New(bff.Config{
		PublicURL: "http://localhost:8080",
		Provider: bff.ProviderConfig{
			Issuer: "https://id.example.com", ClientID: "spa", ClientSecret: "from the environment",
		},
		Sessions: session.Config{Store: new(tokenstore.Memory), Keys: [][]byte{bytes.Repeat([]byte("k"), 32)}},
		Logger:   slog.New(slog.DiscardHandler),
	})
	check(err)
	orders := broker.RequireSession(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := broker.Session(r)
		check(err)
		fmt.Fprintf(w, "orders of %s", s.Subject)
	}))
	mux := http.NewServeMux()
	mux.Handle("GET /orders", orders)
	mux.Handle("/", broker)

	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/orders", nil)
	r.Host = "localhost:8080"
	r.Header.Set("X-CSRF", "1") // as the browser client does
	mux.ServeHTTP(w, r)
	fmt.Println(w.Code, w.Header().Get("WWW-Authenticate"))
	// Output: 401 Cookie realm="cloakroom"
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
