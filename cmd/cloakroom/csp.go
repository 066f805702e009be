package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/web"
)

func cspCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "csp DIR",
		Short: "Print what a build needs of the Content-Security-Policy",
		Long: `Print what the build of an app in DIR needs of the Content-Security-Policy, and
why, as YAML for the configuration. It reads pages, style sheets and scripts,
and runs nothing. What scripts load is a guess: check it, and try the app with
csp_report_only: true.

Sources that weaken the policy much, such as 'unsafe-eval', are comments. Add
them only if the app does not work without.

The exit status is 1 if the build has something that no policy of Cloakroom
allows, such as a javascript: URL.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("%s takes one directory; see %[1]s --help", c.CommandPath())}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			build, err := web.ReadBuild(args[0])
			if err != nil {
				return usageError{err}
			}
			policy, impossible := build.Policy()
			if asJSON {
				err = writeBuildJSON(c.OutOrStdout(), build, policy)
			} else {
				err = writeBuild(c.OutOrStdout(), build, policy)
			}
			if err == nil && impossible {
				err = errors.New("some of the build cannot work with the Content-Security-Policy")
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print a JSON object: csp, needs, mentions, notes")
	return c
}

func writeBuildJSON(w io.Writer, build *web.Build, policy map[string][]string) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(struct {
		CSP map[string][]string `json:"csp"`
		*web.Build
	}{policy, build})
}

// writeBuild writes a part of a configuration, with the reasons as comments.
func writeBuild(w io.Writer, build *web.Build, policy map[string][]string) error {
	var b strings.Builder
	section := func(title string, needs []web.Need, line func(web.Need) string) {
		if len(needs) == 0 {
			return
		}
		fmt.Fprintf(&b, "# %s\n", title)
		var written []string
		for _, n := range needs {
			if text := line(n); !slices.Contains(written, text) {
				written = append(written, text)
				fmt.Fprintf(&b, "#   %s\n", text)
			}
		}
		b.WriteString("\n")
	}
	section("No policy allows these. Change the app:", pick(build.Needs, isImpossible), func(n web.Need) string {
		return fmt.Sprintf("%s: %s (%s): %s", n.Place(), n.What, n.Directive, n.Fix)
	})
	section("Allowed already:", pick(build.Needs, isAllowed), func(n web.Need) string {
		return fmt.Sprintf("%s (%s)", n.What, n.Directive)
	})
	if len(build.Mentions) > 0 {
		b.WriteString("# Scripts mention these origins, too. If the app loads one of them, add it:\n")
		for _, m := range build.Mentions {
			fmt.Fprintf(&b, "#   %s (%s)\n", m.Origin, web.Need{File: m.File, Line: m.Line}.Place())
		}
		b.WriteString("\n")
	}
	for _, note := range build.Notes {
		fmt.Fprintf(&b, "# %s\n", note)
	}
	b.WriteString("frontend:\n")
	toAdd := pick(build.Needs, func(n web.Need) bool { return !isImpossible(n) && !isAllowed(n) })
	switch {
	case len(policy) == 0 && len(toAdd) == 0:
		b.WriteString("  csp: {} # the strict default is enough\n")
	case len(policy) == 0:
		b.WriteString("  csp: {}\n")
	default:
		b.WriteString("  csp:\n")
	}
	writeSources(&b, toAdd, policy)
	_, err := io.WriteString(w, b.String())
	return err
}

// writeSources writes the sources of each directive with their reasons.
func writeSources(b *strings.Builder, needs []web.Need, policy map[string][]string) {
	directive := ""
	written := make(map[string]bool) // :: directive and source
	for _, n := range needs {
		if n.Directive != directive {
			directive = n.Directive
			comment := ""
			if len(policy[directive]) == 0 { // only risky sources
				comment = "# "
			}
			fmt.Fprintf(b, "    %s%s:\n", comment, directive)
		}
		reason := n.What
		if n.Guess {
			reason = "guess: " + reason
		}
		if n.More > 0 {
			reason += fmt.Sprintf(", and %d more", n.More)
		}
		fmt.Fprintf(b, "      # %s: %s\n", n.Place(), reason)
		if n.Fix != "" {
			fmt.Fprintf(b, "      #   instead: %s\n", n.Fix)
		}
		for _, source := range n.Sources {
			if written[directive+" "+source] {
				continue
			}
			written[directive+" "+source] = true
			comment := ""
			if n.Risky {
				comment = "# weakens the policy much: "
			}
			fmt.Fprintf(b, "      %s- %q\n", comment, source)
		}
	}
}

func pick(needs []web.Need, matches func(web.Need) bool) []web.Need {
	return slices.DeleteFunc(slices.Clone(needs), func(n web.Need) bool { return !matches(n) })
}

func isImpossible(n web.Need) bool { return len(n.Sources) == 0 }

func isAllowed(n web.Need) bool { return n.Default }
