package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version, commit and Go version",
		RunE: func(c *cobra.Command, _ []string) error {
			v, rev := buildInfo()
			_, err := fmt.Fprintf(c.OutOrStdout(), "cloakroom %s, commit %s, %s\n", v, rev, runtime.Version())
			return err
		},
	}
}

// The release build sets version and commit with -ldflags, such as
// "-X main.version=v1.2.3 -X main.commit=0123456". Empty means unknown.
var version, commit string

// buildInfo returns version and commit of this build.
func buildInfo() (v, rev string) {
	v, rev = version, commit
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
	return v, rev
}
