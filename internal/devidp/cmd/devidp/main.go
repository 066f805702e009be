// Command devidp runs the development provider and the sample API for a broker
// in another process, as in the browser test. When both listen, it prints one
// line of JSON: issuer, client_id, client_secret, and the URL of the API as
// api. It ends on SIGINT and SIGTERM.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/sampleapi"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	redirectURI := flag.String("redirect-uri", "", "the client's redirect `URI`")
	postLogoutURI := flag.String("post-logout-redirect-uri", "", "the client's post-logout redirect `URI`")
	backchannelURI := flag.String("backchannel-logout-uri", "", "the client's back-channel logout `URI`")
	ttl := flag.Duration("access-token-ttl", time.Minute, "lifetime of access tokens")
	flag.Parse()

	idp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	api, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	issuer := "http://" + idp.Addr().String()
	client := devidp.Client{
		ID: "spa", Secret: rand.Text(),
		RedirectURIs: []string{
			*redirectURI,
		}, PostLogoutRedirectURIs: []string{*postLogoutURI}, BackchannelLogoutURI: *backchannelURI,
	}
	provider, err := devidp.New(devidp.Config{Issuer: issuer, AccessTokenTTL: *ttl, Clients: []devidp.Client{client}})
	if err != nil {
		return err
	}
	samples, err := sampleapi.New(sampleapi.Config{Issuer: issuer, Audience: "api"})
	if err != nil {
		return err
	}
	var group errgroup.Group
	for l, h := range map[net.Listener]http.Handler{idp: provider, api: samples} {
		s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
		context.AfterFunc(ctx, func() { s.Close() })
		group.Go(func() error {
			if err := s.Serve(l); ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{
		"issuer": issuer, "client_id": client.ID, "client_secret": client.Secret, "api": "http://" +
			api.Addr().String(),
	}); err != nil {
		return err
	}
	return group.Wait()
}
