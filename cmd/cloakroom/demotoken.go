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

// demoCLI is the client of "demo token" at the demo's provider. Its secret need
// not be secret: a client that reaches the provider can sign in as any user.
var demoCLI = devidp.Client{ID: "cli", Secret: "cli", Scopes: demoScopes, NamesUsers: true}

func demoTokenCommand() *cobra.Command {
	var listen, user, scope string
	c := &cobra.Command{
		Use:   "token",
		Short: "Print an access token of a running demo",
		Long: `Print an access token of a running demo, for its API and for "cloakroom verify".
The token goes to standard output, examples of its use to standard error.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return demoToken(c.Context(), listen, user, scope, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	c.Flags().StringVar(&listen, "listen", demoListen, "`ADDRESS` of the demo")
	c.Flags().StringVar(&user, "user", "alice", "`NAME` of the user: alice or bob")
	c.Flags().StringVar(&scope, "scope", "orders:read", "`SCOPES` of the token, separated by spaces")
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
		return fmt.Errorf("no demo is running at %s: %w; start one with: cloakroom demo", app, err)
	}
	form := url.Values{"grant_type": {"password"}, "username": {user}, "scope": {scope},
		"client_id": {demoCLI.ID}, "client_secret": {demoCLI.Secret}}
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
	var result struct {
		Token       string `json:"access_token"`
		Description string `json:"error_description"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&result); err != nil {
		return fmt.Errorf("the demo's provider responded with %s and without a token: %w", resp.Status, err)
	}
	if result.Token == "" {
		return fmt.Errorf("the demo's provider refused a token for %q: %s", user, printable(result.Description))
	}
	command := "cloakroom demo token"
	if listen != demoListen {
		command += " --listen " + listen
	}
	fmt.Fprintf(stderr, "Check it:   %[1]s | cloakroom verify --issuer %[2]s --audience api\n"+
		"Use it:     curl -H \"Authorization: Bearer $(%[1]s)\" %[3]s/api/orders\n", command, issuer, app)
	_, err = fmt.Fprintln(stdout, result.Token)
	return err
}

// demoIssuer returns the issuer of a demo, which it finds by the redirect of a
// login.
func demoIssuer(ctx context.Context, client *http.Client, app string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, app+"/bff/login", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", errors.Unwrap(err) // without the URL, which the caller adds
	}
	resp.Body.Close()
	to, err := resp.Location()
	if err != nil {
		return "", fmt.Errorf("a login returned %s", resp.Status)
	}
	issuer, _, found := strings.Cut(to.String(), "/authorize?")
	if host := to.Hostname(); !found || host != "127.0.0.1" {
		return "", fmt.Errorf("a login leads to %s, which is not the provider of a demo", to.Host)
	}
	return issuer, nil
}
