package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// demoCLI is demo token to the demo's provider. Its secret is none: whoever reaches the provider can sign in there as anybody.
var demoCLI = devidp.Client{ID: "cli", Secret: "cli", Scopes: demoScopes, NamesUsers: true}

func demoTokenCommand() *cobra.Command {
	var listen, user, scope string
	c := &cobra.Command{
		Use:   "token",
		Short: "Print an access token of a running demo",
		Long: `Print an access token of a running demo, for its API and for "cloakroom verify".
The token is printed to standard output, how to use it to standard error.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return demoToken(c.Context(), listen, user, scope, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	c.Flags().StringVar(&listen, "listen", demoListen, "`ADDRESS` that the demo listens on")
	c.Flags().StringVar(&user, "user", "alice", "`NAME` of the user that it is for: alice or bob")
	c.Flags().StringVar(&scope, "scope", "orders:read", "`SCOPES` that it allows, with spaces between")
	return c
}

func demoToken(ctx context.Context, listen, user, scope string, stdout, stderr io.Writer) error {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return usageError{fmt.Errorf("--listen: %q is not an address such as %s", listen, demoListen)}
	}
	app := "http://localhost:" + port
	client := &http.Client{
		Timeout:       5 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	issuer, err := demoIssuer(ctx, client, app)
	if err != nil {
		return fmt.Errorf("no demo answers at %s: %w; start one with: cloakroom demo", app, err)
	}
	form := url.Values{"grant_type": {"password"}, "username": {user}, "scope": {scope}, "client_id": {demoCLI.ID}, "client_secret": {demoCLI.Secret}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Token       string `json:"access_token"`
		Description string `json:"error_description"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&answer); err != nil {
		return fmt.Errorf("the demo's provider answered %s, which is no token: %w", resp.Status, err)
	}
	if answer.Token == "" {
		return fmt.Errorf("the demo's provider gives no token for %q: %s", user, printable(answer.Description))
	}
	fmt.Fprintf(stderr, "To look at it:   cloakroom demo token | cloakroom verify --issuer %s --audience api\n"+
		"To use it:       curl -H \"Authorization: Bearer $(cloakroom demo token)\" %s/api/orders\n", issuer, app)
	_, err = fmt.Fprintln(stdout, answer.Token)
	return err
}

// demoIssuer asks a demo where its logins lead.
func demoIssuer(ctx context.Context, client *http.Client, app string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, app+"/bff/login", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", errors.Unwrap(err) // the URL is in it, and told already
	}
	resp.Body.Close()
	to, err := resp.Location()
	if err != nil {
		return "", fmt.Errorf("a login is answered with %s", resp.Status)
	}
	issuer, _, found := strings.Cut(to.String(), "/authorize?")
	if host := to.Hostname(); !found || host != "127.0.0.1" {
		return "", fmt.Errorf("a login leads to %s, which is no demo's provider", to.Host)
	}
	return issuer, nil
}
