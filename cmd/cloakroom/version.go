package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print version, commit, its time, and Go version",
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), versionLine())
			return err
		},
	}
}

func versionLine() string {
	v, rev := buildInfo()
	return fmt.Sprintf("cloakroom %s, commit %s of %s, %s", v, rev, buildSetting("vcs.time"), runtime.Version())
}

// buildInfo returns version and commit of this build, as the go command has
// recorded them. The version is a tag, or derived from the commit. It ends in
// +dirty if the source had changes. What is not known is "development" and
// "unknown".
func buildInfo() (v, rev string) {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "(devel)" {
		v = info.Main.Version
	}
	return cmp.Or(v, "development"), buildSetting("vcs.revision")
}

// buildSetting returns a setting of this build, such as vcs.time. If it is not
// recorded, that is "unknown".
func buildSetting(key string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == key {
				return s.Value
			}
		}
	}
	return "unknown"
}
