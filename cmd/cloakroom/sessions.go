package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func sessionsCommand(getenv func(string) string) *cobra.Command {
	c := &cobra.Command{
		Use:   "sessions",
		Short: "List or revoke the sessions of a user of a running broker",
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(listSessionsCommand(getenv), revokeSessionsCommand(getenv))
	return c
}

// selection says which sessions a command is about.
type selection struct{ sub, sid, id string }

func (s *selection) flags(c *cobra.Command) {
	c.Flags().StringVar(&s.sub, "sub", "", "the sessions of the user with this `SUB` at the provider")
	c.Flags().StringVar(&s.sid, "sid", "", "the sessions that belong to this `SID` at the provider")
	c.Flags().StringVar(&s.id, "id", "", "the session with this `ID`, as in logs and /bff/session")
}

// member returns the one that is set, and its name in the API.
func (s *selection) member() (name, value string, err error) {
	for given, v := range map[string]string{"sub": s.sub, "sid": s.sid, "id": s.id} {
		if v == "" {
			continue
		}
		if name != "" {
			return "", "", usageError{errors.New("give only one of --sub, --sid and --id")}
		}
		name, value = given, v
	}
	if name == "" {
		return "", "", usageError{errors.New("give one of --sub, --sid and --id")}
	}
	return name, value, nil
}

// listedSession is a session in the response to GET /admin/sessions.
type listedSession struct {
	ID            string    `json:"id"`
	CreatedAt     time.Time `json:"created_at"`   // zero: unknown
	LastSeenAt    time.Time `json:"last_seen_at"` // zero: unknown
	IdleExpiresAt time.Time `json:"idle_expires_at"`
	ExpiresAt     time.Time `json:"expires_at"` // zero: unknown
	Device        string    `json:"device"`     // empty: unknown
}

func listSessionsCommand(getenv func(string) string) *cobra.Command {
	a := adminClient{getenv: getenv}
	var which selection
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the sessions of a user, the newest first",
		Long: `List the sessions of a user, or of a session at the provider, the newest first.
IDLE END is when a session ends without further activity. END is when it ends at
the latest.`,
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := a.listSessions(c.Context(), which)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(c.OutOrStdout()).Encode(list)
			}
			if len(list) == 0 {
				fmt.Fprintln(c.ErrOrStderr(), "no sessions")
				return nil
			}
			table := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(table, "ID\tCREATED\tLAST SEEN\tIDLE END\tEND\tDEVICE")
			for _, raw := range list {
				var s listedSession
				if err := json.Unmarshal(raw, &s); err != nil {
					return fmt.Errorf("the response of the broker: %w", err)
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, cell(s.CreatedAt), cell(s.LastSeenAt),
					cell(s.IdleExpiresAt), cell(s.ExpiresAt), cmp.Or(s.Device, "unknown"))
			}
			return table.Flush()
		},
	}
	which.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	a.flags(c)
	return c
}

// cell returns a time for a table.
func cell(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return t.UTC().Format(time.RFC3339)
}

// listSessions returns the elements of all pages of the list.
func (a *adminClient) listSessions(ctx context.Context, which selection) ([]json.RawMessage, error) {
	name, value, err := which.member()
	if err != nil {
		return nil, err
	}
	list := []json.RawMessage{}
	for path := "/admin/sessions?" + (url.Values{name: {value}}).Encode(); path != ""; {
		resp, err := a.do(ctx, http.MethodGet, path, nil, 30*time.Second)
		if err != nil {
			return nil, err
		}
		var page []json.RawMessage
		if resp.status != http.StatusOK || json.Unmarshal(resp.body, &page) != nil {
			return nil, resp.failure()
		}
		list = append(list, page...)
		link, _, _ := strings.Cut(strings.TrimPrefix(resp.header.Get("Link"), "<"), ">")
		path = link
	}
	return list, nil
}

func revokeSessionsCommand(getenv func(string) string) *cobra.Command {
	a := adminClient{getenv: getenv}
	var which selection
	c := &cobra.Command{
		Use:   "revoke",
		Short: "End sessions on all replicas, and revoke their tokens",
		Long: `End a session, or all sessions of a user, on all replicas. Tokens can be read
only with the cookie of the browser. They are revoked at the provider at once if
a replica has the session in its cache, otherwise when the browser sends the
cookie again. With --id, the exit status is 1 if there is no such session.`,
		RunE: func(c *cobra.Command, _ []string) error {
			revoked, err := a.revokeSessions(c.Context(), which)
			if err != nil {
				return err
			}
			for _, id := range revoked {
				fmt.Fprintln(c.OutOrStdout(), "revoked", id)
			}
			if len(revoked) == 0 {
				fmt.Fprintln(c.ErrOrStderr(), "no sessions")
			}
			return nil
		},
	}
	which.flags(c)
	a.flags(c)
	return c
}

// revokeSessions returns the IDs of the sessions that it has ended.
func (a *adminClient) revokeSessions(ctx context.Context, which selection) ([]string, error) {
	name, value, err := which.member()
	if err != nil {
		return nil, err
	}
	if name == "id" {
		resp, err := a.do(ctx, http.MethodDelete, "/admin/sessions/"+url.PathEscape(value), nil, 30*time.Second)
		switch {
		case err != nil:
			return nil, err
		case resp.status == http.StatusNotFound:
			return nil, errors.New("there is no such session; it may have ended")
		case resp.status != http.StatusNoContent:
			return nil, resp.failure()
		}
		return []string{value}, nil
	}
	body, err := json.Marshal(map[string]string{name: value})
	if err != nil {
		return nil, err
	}
	resp, err := a.do(ctx, http.MethodPost, "/admin/revoke", body, time.Minute)
	if err != nil {
		return nil, err
	}
	var result struct{ Revoked []string }
	if resp.status != http.StatusOK || json.Unmarshal(resp.body, &result) != nil {
		return nil, resp.failure()
	}
	return result.Revoked, nil
}
