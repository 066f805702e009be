// Command cloakroom is a backend for a frontend (BFF): it keeps the tokens of a
// single-page app on the server. The browser gets a session cookie.
//
//	cloakroom demo                  run a provider, an API and an app in one process
//	cloakroom demo token            print an access token of a running demo
//	cloakroom dev -- COMMAND        run your app's development server behind a
//	                                broker and a development provider
//	cloakroom init                  write the configuration for a front-end project
//	cloakroom client DIR            write the browser client into a directory of
//	                                an app
//	cloakroom serve --config FILE   run the broker
//	cloakroom reload --config FILE  make a running broker apply its configuration
//	cloakroom health --config FILE  print whether a running broker is ready
//	cloakroom sessions list --sub SUB --config FILE
//	                                list the sessions of a user of a running broker
//	cloakroom sessions revoke --sub SUB|--id ID --config FILE
//	                                end sessions on all replicas
//	cloakroom why USER|SESSION|REQUEST --config FILE
//	                                print what happened to a session, and why it
//	                                ended
//	cloakroom check --config FILE   find mistakes in the configuration, and faults
//	                                of what the broker depends on
//	cloakroom csp DIR               print what a build needs of the
//	                                Content-Security-Policy
//	cloakroom schema                print the JSON Schema of the configuration
//	cloakroom verify --issuer URL --audience NAME
//	                                check the access token on standard input as
//	                                an API would
//	cloakroom keygen                print a new key for session.keys
//	cloakroom version               print version, commit, its time, and Go version
//
// serve, demo and dev end on SIGINT and SIGTERM, after the requests in flight.
// A second signal ends them at once. serve applies changes of its
// configuration. Logs go to standard error.
//
// The exit status is 0, 1 for a failure, or 2 for a problem with the command
// line or the configuration. That of dev is the status of its COMMAND.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cloakroom-bff/cloakroom/internal/config"
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
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.status
	case errors.As(err, &problems), errors.As(err, &usage):
		return 2
	default:
		return 1
	}
}

// run runs the command in args. When ctx ends, it returns after the shutdown.
// It prints the error to stderr and returns it.
func run(
	ctx context.Context, args []string, getenv func(string) string,
	stdin io.Reader, stdout, stderr io.Writer,
) error {
	root := &cobra.Command{
		Use:           "cloakroom",
		Short:         "A backend for a frontend (BFF): keeps the tokens of your app on the server",
		Version:       versionLine(),
		SilenceUsage:  true,
		SilenceErrors: true,

		PersistentPreRunE: awaitConfig,
		Args:              cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; see cloakroom --help", args[0])}
			}
			return c.Help()
		},
	}
	root.SetArgs(separateID(args))
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		// The flags may be those of the command that was meant.
		if parsed := c.Flags().Args(); len(parsed) > 0 && c.HasSubCommands() {
			return noArguments(c, parsed)
		}
		return usageError{fmt.Errorf("%w; see %s --help", flagError(err), c.CommandPath())}
	})
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(demoCommand(getenv), devCommand(), initCommand(), clientCommand(), serveCommand(getenv),
		reloadCommand(getenv), healthCommand(getenv),
		checkCommand(getenv), schemaCommand(), cspCommand(), sessionsCommand(getenv), whyCommand(getenv),
		keygenCommand(),
		verifyCommand(), versionCommand())
	for _, c := range root.Commands() {
		if c.Args == nil {
			c.Args = noArguments
		}
		for _, sub := range c.Commands() {
			sub.Args = noArguments
		}
	}
	root.SetHelpCommand(helpCommand(root))
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", ".FlagUsagesWrapped 80"))
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	return err
}

// helpCommand is that of cobra, with an error for a command that does not
// exist.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Help about any command",
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usageError{fmt.Errorf("unknown command %q; see cloakroom --help", strings.Join(args, " "))}
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
	}
}

// flagError returns the error of a flag without the terms of Go in it.
func flagError(err error) error {
	invalid, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err
	}
	kinds := map[string]string{"int": "a whole number", "bool": "true or false", "duration": "a duration such as 30s"}
	flag := invalid.GetFlag()
	kind, ok := kinds[flag.Value.Type()]
	if !ok {
		return err
	}
	return fmt.Errorf("--%s: %q is not %s", flag.Name, invalid.GetValue(), kind)
}

func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 && c.HasSubCommands() {
		return usageError{fmt.Errorf("unknown command %q; see %s --help", args[0], c.CommandPath())}
	}
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q; see %[1]s --help", c.CommandPath(), args[0])}
	}
	return nil
}
