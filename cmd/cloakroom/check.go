package main

import (
	"encoding/json"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/internal/check"
	"github.com/cloakroom-bff/cloakroom/internal/config"
)

func checkCommand(getenv func(string) string) *cobra.Command {
	var asJSON bool
	o := check.Options{Getenv: getenv}
	c := &cobra.Command{
		Use:   "check",
		Short: "Find mistakes in the configuration, and faults around the broker",
		Long: `Find mistakes in the configuration, and faults of what the broker depends on. It
asks the provider, the store, the upstreams, the other replicas and the public
URL, and prints what it finds with a fix for each. It takes at most 15 seconds.

It changes nothing: no session is written or ended. The provider logs an
authorization request, or a token request with a made-up code. The store has
keys for a moment, which are deleted.

The exit status is 1 if there are errors, otherwise 0, also with warnings.`,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Environ = os.Environ()
			o.Version, o.Commit = buildInfo()
			findings := check.Run(c.Context(), o)
			if c.Context().Err() != nil {
				return errInterrupted
			}
			var err error
			if asJSON {
				encoder := json.NewEncoder(c.OutOrStdout())
				encoder.SetEscapeHTML(false)
				encoder.SetIndent("", "  ")
				err = encoder.Encode(append([]check.Finding{}, findings...))
			} else {
				err = check.WriteTable(c.OutOrStdout(), findings)
			}
			if err == nil && check.HasErrors(findings) {
				err = errors.New("errors found")
			}
			return err
		},
	}
	c.Flags().StringVarP(&o.File, "config", "c", "", "configuration `FILE` (YAML), as for serve")
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of findings: key, problem, fix, severity")
	c.Flags().BoolVar(&o.Offline, "offline", false, "read the file, and the files that it names, only")
	return c
}

func schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration",
		Long: `Print the JSON Schema of the configuration, for validation and for completion in
editors.`,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write(config.Schema())
			return err
		},
	}
}
