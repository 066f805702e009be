package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/terminal"
	"github.com/cloakroom-bff/cloakroom/session"
)

func whyCommand(getenv func(string) string) *cobra.Command {
	a := adminClient{getenv: getenv}
	var asJSON bool
	c := &cobra.Command{
		Use:   "why USER|SESSION|REQUEST",
		Short: "Print what happened to a session, and why it ended",
		Long: `Print the events of a session, of the sessions of a user, or of a request, the
oldest first, as any replica has noticed them. USER is a sub at the provider or
its hash in the log, SESSION an ID as in /bff/session, and REQUEST an ID of an
error response or a log line. Events are kept until a day after the end of a
session.`,
		Args: oneArgument,
		RunE: func(c *cobra.Command, args []string) error {
			events, more, err := a.why(c.Context(), args[0])
			switch {
			case err != nil:
				return err
			case asJSON:
				err = json.NewEncoder(c.OutOrStdout()).Encode(events)
			default:
				err = printEvents(c, events)
			}
			if err == nil && more {
				fmt.Fprintln(c.ErrOrStderr(), "These are the events of the newest sessions only; "+
					"there are older ones (see docs/operations.md).")
			}
			if err == nil && len(events) == 0 {
				return fmt.Errorf("there are no events of a user, a session or a request %.80q", args[0])
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	a.flags(c)
	return c
}

// oneArgument is cobra.ExactArgs(1) with an error that names what is missing.
func oneArgument(c *cobra.Command, args []string) error {
	if len(args) == 1 && args[0] != "" {
		return nil
	}
	return usageError{fmt.Errorf("%s takes a user, a session or a request; see %[1]s --help", c.CommandPath())}
}

// sessionID matches the ID of a session.
var sessionID = regexp.MustCompile(`^[A-Za-z0-9_-]{22}$`)

// separateID returns the arguments of a command so that the ID of a session
// which begins with a hyphen is not taken for a flag of why.
func separateID(args []string) []string {
	if len(args) < 2 || args[0] != "why" || slices.Contains(args, "--") {
		return args
	}
	i := slices.IndexFunc(args, func(arg string) bool {
		return strings.HasPrefix(arg, "-") &&
			sessionID.MatchString(arg)
	})
	if i < 0 {
		return args
	}
	return append(slices.Delete(slices.Clone(args), i, i+1), "--", args[i])
}

// why returns the events of what value names: a session, a user or a request.
// more reports whether there are events of older sessions.
func (a *adminClient) why(ctx context.Context, value string) (events []bff.Event, more bool, err error) {
	path := "/admin/why?" + url.Values{"any": {value}}.Encode()
	resp, err := a.do(ctx, http.MethodGet, path, nil, time.Minute)
	if err != nil {
		return nil, false, err
	}
	if resp.status != http.StatusOK {
		return nil, false, resp.failure()
	}
	if err := json.Unmarshal(resp.body, &events); err != nil {
		return nil, false, fmt.Errorf("the response of the broker: %w", err)
	}
	return events, resp.header.Get("Link") != "", nil
}

// printEvents prints a table of events, and then why sessions ended.
func printEvents(c *cobra.Command, events []bff.Event) error {
	if len(events) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "TIME\tEVENT\tREASON\tSESSION\tUSER\tCLIENT\tREQUEST")
	for _, e := range events {
		row := []string{
			e.Time.UTC().Format("2006-01-02T15:04:05.000Z"), string(e.Kind), e.Reason, e.Session, e.User, e.Client,
			e.Request,
		}
		for i, text := range row {
			if row[i] = terminal.OneLine(text); text == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, e := range events {
		switch cause, ended := endCauses[session.Reason(e.Reason)]; {
		case e.Kind == bff.EventKind(session.SessionEnded) && ended:
			fmt.Fprintf(c.OutOrStdout(), "\nSession %s ended at %s: %s\n",
				terminal.OneLine(e.Session), e.Time.UTC().Format(time.RFC3339), cause)
		case e.Cause != "":
			fmt.Fprintf(c.OutOrStdout(), "\n%s at %s:\n", e.Kind, e.Time.UTC().Format(time.RFC3339))
		default:
			continue
		}
		if e.Cause != "" {
			fmt.Fprintln(c.OutOrStdout(), " ", terminal.OneLine(e.Cause))
		}
	}
	return nil
}

// endCauses say for each reason why the session ended, and what to look at.
var endCauses = map[session.Reason]string{
	session.ReasonLogout:       "the user signed out in this browser.",
	session.ReasonBackchannel:  "the provider ended it, by a back-channel logout.",
	session.ReasonFrontchannel: "the provider ended it, by a front-channel logout in the browser.",
	session.ReasonIdle: "there was no API call for session.idle_timeout.\n" +
		"  If this happened to many users at once, the store has lost its records.",
	session.ReasonLifetime: "it reached its absolute end: session.max_lifetime, or one that the provider set.",
	session.ReasonRefused:  "the provider refused the refresh token (invalid_grant).",
	session.ReasonReplaced: "the user signed in again in the same browser.",
	session.ReasonLimit:    "the user signed in elsewhere, and had more sessions than session.max_per_user.",
	session.ReasonRevoked: "an administrator ended it, or the user did so on another device.\n" +
		"  If it was an administrator, there is an event admin.session_revoked.",
	session.ReasonKeyRemoved: "the key that encrypted it is not in session.keys any more.\n" +
		"  Keep an old key for session.max_lifetime.",
}
