// Command sample-api is the API of the demo as a separate program, for
// docker-compose.yml.
//
//	sample-api --issuer URL --audience NAME [--listen ADDRESS]
//	sample-api --health [--listen ADDRESS]
//
// With --health it asks the API at the address instead, for the health check of
// a container. The exit status is 0 if it responds.
//
// Environment variables can set the flags too: SAMPLE_API_LISTEN,
// SAMPLE_API_ISSUER, SAMPLE_API_AUDIENCE. The program ends on SIGINT and
// SIGTERM, after the requests in flight or ten seconds. Logs go to standard
// error. The exit status is 0, 1 for a failure, or 2 for a mistake in the
// command line or the environment.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/sampleapi"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	var usage usageError
	switch err := run(ctx, os.Args[1:], os.Getenv, os.Stderr); {
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// usageError is a mistake in the command line or the environment.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

const grace = 10 * time.Second

// run serves until ctx ends and the requests in flight have finished.
func run(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) error {
	flags := flag.NewFlagSet("sample-api", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // main prints the error
	listen := flags.String("listen", cmp.Or(getenv("SAMPLE_API_LISTEN"), "127.0.0.1:8081"), "`address` to listen on")
	issuer := flags.String("issuer", getenv("SAMPLE_API_ISSUER"),
		"issuer `URL` of access tokens, exactly as in the tokens")
	audience := flags.String("audience", getenv("SAMPLE_API_AUDIENCE"), "`name` of this API, which aud must contain")
	health := flags.Bool("health", false, "ask the API that listens there, and exit with 0 if it responds")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(stderr)
		flags.PrintDefaults()
		return nil
	case err != nil:
		return usageError{err}
	case flags.NArg() > 0:
		return usageError{fmt.Errorf("there is no argument %q; see sample-api --help", flags.Arg(0))}
	}
	if *health {
		return checkHealth(ctx, *listen)
	}

	log := slog.New(slog.NewJSONHandler(stderr, nil))
	api, err := sampleapi.New(sampleapi.Config{Issuer: *issuer, Audience: *audience, Logger: log})
	if err != nil {
		return usageError{err}
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	log.Info("listening", "listen", listener.Addr().String(), "issuer", *issuer, "audience", *audience)

	server := &http.Server{
		Handler:           api,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }() // ended by Shutdown, or by a listener that fails
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	log.Info("shutting down", "grace", grace.String())
	draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if err := server.Shutdown(draining); err != nil {
		server.Close()
		return fmt.Errorf("shut down: %w", err)
	}
	return nil
}

// checkHealth asks the API that listens at an address of this host.
func checkHealth(ctx context.Context, listen string) error {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return usageError{fmt.Errorf("listen: %w", err)}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	url := "http://" + net.JoinHostPort("127.0.0.1", port) + "/public/time"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return nil
}
