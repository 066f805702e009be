// Command cloakroom is a backend for a frontend: it keeps the tokens of a
// single-page app on the server, behind a session cookie.
//
//	cloakroom demo                  run a provider, an API and an app in one process
//	cloakroom demo token            print an access token of a running demo
//	cloakroom serve --config FILE   run the broker
//	cloakroom reload --config FILE  have a running broker apply its configuration
//	cloakroom health --config FILE  ask a running broker whether it is ready
//	cloakroom verify --issuer URL --audience NAME
//	                                print the access token on standard input and
//	                                whether an API would accept it
//	cloakroom keygen                print a new key for session.keys
//	cloakroom version               print version, commit and Go version
//
// serve and demo end on SIGINT and SIGTERM, when requests in flight have ended; a
// second signal ends them at once. serve applies a changed configuration. Logs go
// to standard error.
//
// The exit status is 0, 1 for a failure, or 2 for a problem with the command line
// or the configuration.
package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/session"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(exitCode(run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)))
}

// usageError is a problem with the command line.
type usageError struct{ error }

func exitCode(err error) int {
	var problems config.Errors
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &problems), errors.As(err, &usage):
		return 2
	default:
		return 1
	}
}

// run runs the command in args until it ends, or until ctx ends and everything is
// shut down. It prints the error to stderr and returns it.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	root := &cobra.Command{
		Use:           "cloakroom",
		Short:         "A backend for a frontend: keeps the tokens of your app on the server",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; see cloakroom --help", args[0])}
			}
			return c.Help()
		},
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(demoCommand(getenv), serveCommand(getenv), reloadCommand(getenv), healthCommand(getenv),
		keygenCommand(), verifyCommand(), versionCommand())
	for _, c := range root.Commands() {
		c.Args = noArguments
		for _, sub := range c.Commands() {
			sub.Args = noArguments
		}
	}
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	return err
}

func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q; see %s --help", c.CommandPath(), args[0], c.CommandPath())}
	}
	return nil
}

func keygenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen",
		Short: "Print a new key for session.keys",
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), newKey().Reveal())
			return err
		},
	}
}

// newKey returns a key for session.keys.
func newKey() session.Secret {
	key := make([]byte, 32)
	rand.Read(key)
	return session.Secret(base64.StdEncoding.EncodeToString(key))
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version, commit and Go version",
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), buildVersion())
			return err
		},
	}
}

// version is set by the release build: -ldflags "-X main.version=v1.2.3 -X main.commit=…".
var version, commit string

func buildVersion() string {
	v, rev := version, commit
	if info, ok := debug.ReadBuildInfo(); ok {
		if v == "" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && rev == "" {
				rev = s.Value
			}
		}
	}
	if v == "" || v == "(devel)" {
		v = "development"
	}
	if rev == "" {
		rev = "unknown"
	}
	return fmt.Sprintf("cloakroom %s, commit %s, %s", v, rev, runtime.Version())
}
