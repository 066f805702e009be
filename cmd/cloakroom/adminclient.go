package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
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
	c.Flags().StringVarP(&a.file, "config", "c", "",
		"configuration `FILE` of the broker, for server.admin_listen and server.admin_token")
}

// maxAdminResponse bounds the body of a response.
const maxAdminResponse = 32 << 20

// adminResponse is a response of the admin listener.
type adminResponse struct {
	status int
	header http.Header
	body   []byte
}

// failure returns an error that shows the response.
func (r adminResponse) failure() error {
	return fmt.Errorf("the broker responded with %d: %s", r.status, strings.TrimSpace(string(r.body)))
}

// do sends a request, with a JSON body unless that is nil.
func (a *adminClient) do(
	ctx context.Context, method, path string, body []byte, timeout time.Duration,
) (adminResponse, error) {
	if err := a.checkFile(); err != nil {
		return adminResponse{}, err
	}
	listen, token := config.LoadAdmin(a.file, a.getenv)
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return adminResponse{}, usageError{fmt.Errorf(
			"server.admin_listen: %q is not an address such as 127.0.0.1:9090", listen)}
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(limited, method, "http://"+net.JoinHostPort(host, port)+path,
		bytes.NewReader(body))
	if err != nil {
		return adminResponse{}, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token.Reveal())
	}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil && conn.RemoteAddr().(*net.TCPAddr).IP.IsLoopback() {
			req.Host = "localhost" // listen may have another name, which the broker refuses without a token
		}
		return conn, err
	}
	// Without the environment's proxy, which would see the token.
	client := &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true, DialContext: dial}}
	resp, err := client.Do(req)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return adminResponse{}, errors.New("interrupted before the broker responded")
	default:
		return adminResponse{}, a.noResponse(listen, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusUnauthorized {
		return adminResponse{}, fmt.Errorf("the broker at %s requires another server.admin_token than "+
			"that of --config "+
			"(if it was changed, send SIGHUP to the broker, which logs why it does not apply the change)", listen)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAdminResponse))
	return adminResponse{resp.StatusCode, resp.Header, text}, err
}

// checkFile returns an error if the file cannot be read, so that a mistyped
// name does not lead to another broker, which listens at the default address.
// In a container that is configured by the environment alone, the health check
// of the image names a file that does not exist.
func (a *adminClient) checkFile() error {
	if a.file == "" {
		return nil
	}
	for _, key := range []string{"SERVER_ADMIN_LISTEN", "SERVER", "OIDC_ISSUER", "OIDC"} {
		if a.getenv("CLOAKROOM_"+key) != "" {
			return nil
		}
	}
	if info, err := os.Stat(a.file); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		return nil // it was read, and has no writer any more
	}
	f, err := os.Open(a.file)
	if err != nil {
		return usageError{fmt.Errorf("--config: %w", err)}
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return usageError{fmt.Errorf("--config: %s is a directory", a.file)}
	}
	return nil
}

// noResponse adds to the error of a request why it may have gone to the wrong
// address.
func (a *adminClient) noResponse(listen string, err error) error {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // without method and URL
	}
	err = fmt.Errorf("no broker responds at %s (server.admin_listen): %w", listen, err)
	if a.file == "" {
		return fmt.Errorf("%w\n(No file was read. Use --config FILE.)", err)
	}
	if c, unread := config.Load(a.file, a.getenv); c == nil { // %v: the exit status is not that of a mistake
		return fmt.Errorf("%w\n--config: the file is missing or not YAML: %v", err, unread)
	}
	return err
}

func reloadCommand(getenv func(string) string) *cobra.Command {
	a := adminClient{getenv: getenv}
	c := &cobra.Command{
		Use:   "reload",
		Short: "Make a running broker apply its configuration",
		Long: `Make a running broker read its configuration again and apply it. If it has
mistakes, they are printed, and the broker keeps the configuration in force. The
command itself only needs server.admin_listen and server.admin_token of FILE.`,
		RunE: func(c *cobra.Command, _ []string) error {
			resp, err := a.do(c.Context(), http.MethodPost, "/admin/reload", nil, time.Minute)
			if err != nil {
				return err
			}
			var result reloadResult
			if json.Unmarshal(resp.body, &result) != nil {
				return resp.failure()
			}
			for _, warning := range result.Warnings {
				fmt.Fprintln(c.ErrOrStderr(), "warning:", warning)
			}
			if result.Applied {
				_, err := fmt.Fprintln(c.OutOrStdout(), "configuration applied")
				return err
			}
			for _, m := range result.Mistakes {
				problem := &config.Error{Source: m.Source, Key: m.Key, Err: errors.New(m.Problem)}
				fmt.Fprintln(c.ErrOrStderr(), problem)
			}
			return errors.New("configuration not applied")
		},
	}
	a.flags(c)
	return c
}

func healthCommand(getenv func(string) string) *cobra.Command {
	a := adminClient{getenv: getenv}
	c := &cobra.Command{
		Use:   "health",
		Short: "Print whether a running broker is ready",
		Long: `Print whether a running broker is ready, and the state of what it depends on.
The exit status is 0 if it is ready, otherwise 1. Use it for probes in images
without a shell.`,
		RunE: func(c *cobra.Command, _ []string) error {
			resp, err := a.do(c.Context(), http.MethodGet, "/readyz?verbose", nil, 5*time.Second)
			if err != nil {
				return err
			}
			fmt.Fprint(c.OutOrStdout(), string(resp.body))
			if resp.status != http.StatusOK {
				return errors.New("not ready")
			}
			return nil
		},
	}
	a.flags(c)
	return c
}
