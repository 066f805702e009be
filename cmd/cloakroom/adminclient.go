package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// adminClient sends requests to the admin listener of a running broker.
type adminClient struct {
	file   string // the broker's configuration
	getenv func(string) string
}

// flags adds the flags by which a command finds the broker.
func (a *adminClient) flags(c *cobra.Command) {
	c.Flags().StringVarP(&a.file, "config", "c", "", "configuration `FILE` of the broker, with its server.admin_listen and server.admin_token")
}

// maxAdminResponse bounds the body of a response.
const maxAdminResponse = 1 << 20

// do sends a request, and returns status and body of the response.
func (a *adminClient) do(ctx context.Context, method, path string, timeout time.Duration) (int, []byte, error) {
	listen, token := config.LoadAdmin(a.file, a.getenv)
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return 0, nil, usageError{fmt.Errorf("server.admin_listen: %q is not an address such as 127.0.0.1:9090", listen)}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+net.JoinHostPort(host, port)+path, nil)
	if err != nil {
		return 0, nil, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token.Reveal())
	}
	// Not by a proxy of the environment, which would see the token.
	client := &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("no broker responds at %s (server.admin_listen): %w", listen, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAdminResponse))
	return resp.StatusCode, body, err
}

func reloadCommand(getenv func(string) string) *cobra.Command {
	a := adminClient{getenv: getenv}
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have a running broker apply its configuration",
		Long: `Have a running broker read its configuration again and apply it. It prints
every mistake. With one, the broker keeps the configuration in force. It also
works while the file has mistakes: only server.admin_listen and
server.admin_token are needed.`,
		RunE: func(c *cobra.Command, _ []string) error {
			status, body, err := a.do(c.Context(), http.MethodPost, "/admin/reload", time.Minute)
			if err != nil {
				return err
			}
			var result reloadResult
			if json.Unmarshal(body, &result) != nil {
				return fmt.Errorf("the broker responded with %d: %s", status, strings.TrimSpace(string(body)))
			}
			for _, warning := range result.Warnings {
				fmt.Fprintln(c.ErrOrStderr(), "warning:", warning)
			}
			if result.Applied {
				_, err := fmt.Fprintln(c.OutOrStdout(), "configuration applied")
				return err
			}
			for _, m := range result.Mistakes {
				fmt.Fprintln(c.ErrOrStderr(), (&config.Error{Source: m.Source, Key: m.Key, Err: errors.New(m.Problem)}).Error())
			}
			return errors.New("configuration not changed")
		},
	}
	a.flags(c)
	return c
}

func healthCommand(getenv func(string) string) *cobra.Command {
	a := adminClient{getenv: getenv}
	c := &cobra.Command{
		Use:   "health",
		Short: "Ask a running broker whether it is ready",
		Long: `Ask a running broker whether it is ready, and print what it depends on. The exit
status is 0 if it is ready. It is for probes in images without a shell.`,
		RunE: func(c *cobra.Command, _ []string) error {
			status, body, err := a.do(c.Context(), http.MethodGet, "/readyz?verbose", 5*time.Second)
			if err != nil {
				return err
			}
			fmt.Fprint(c.OutOrStdout(), string(body))
			if status != http.StatusOK {
				return errors.New("not ready")
			}
			return nil
		},
	}
	a.flags(c)
	return c
}
