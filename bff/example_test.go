package bff_test

import (
	"context"
	"encoding/base64"
	"log"
	"net"
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
	app, err := web.New(web.Config{Dir: "dist"})
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

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
