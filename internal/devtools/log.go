package devtools

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

// LogHandler returns a handler that keeps the lines about requests for the
// page. It passes lines of level WARN and above to next. A line about a request
// that failed as an earlier one did in the last half minute is not passed:
// pages that wait for a server repeat their requests.
func (t *Tools) LogHandler(next slog.Handler) slog.Handler {
	return &logHandler{tools: t, next: next, seen: &seenErrors{at: make(map[string]time.Time)}}
}

type logHandler struct {
	tools *Tools
	next  slog.Handler
	seen  *seenErrors
}

func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (h *logHandler) Handle(ctx context.Context, record slog.Record) error {
	if record.Message == "request" {
		line := readRequest(record)
		h.tools.keep(line)
		if line.Err != "" && !h.seen.first(line.Err, record.Time) {
			return nil
		}
	}
	if record.Level < slog.LevelWarn {
		return nil
	}
	return h.next.Handle(ctx, record)
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.tools, h.next.WithAttrs(attrs), h.seen}
}

func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{h.tools, h.next.WithGroup(name), h.seen}
}

// readRequest returns a line of the access log.
func readRequest(record slog.Record) request {
	line := request{Time: record.Time}
	record.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "request":
			line.ID = a.Value.String()
		case "method":
			line.Method = a.Value.String()
		case "path":
			line.Path = a.Value.String()
		case "route":
			line.Route = a.Value.String()
		case "status":
			line.Status = int(a.Value.Int64())
		case "ms":
			line.Milliseconds = a.Value.Float64()
		case "wait_ms":
			line.WaitedForToken = true
		case "err":
			line.Err = a.Value.String()
		}
		return true
	})
	return line
}

// keep keeps calls of APIs, and requests that were refused. The inspector's own
// are of no interest.
func (t *Tools) keep(line request) {
	if t.isAPI(line) || line.Err != "" && !strings.HasPrefix(line.Route, t.cfg.Prefix+bff.DevToolsPath) {
		t.requests.add(line)
	}
}

// isAPI reports whether a request is a call of an API.
func (t *Tools) isAPI(line request) bool {
	return slices.ContainsFunc(t.cfg.Routes, func(r Route) bool { return r.Path == line.Route })
}

// seenErrors are texts of errors that were logged lately.
type seenErrors struct {
	mu sync.Mutex // guards at
	at map[string]time.Time
}

const (
	repeatAfter   = 30 * time.Second
	maxSeenErrors = 1000
)

// first reports whether a text was not logged lately.
func (s *seenErrors) first(text string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.at[text]) < repeatAfter {
		return false
	}
	if len(s.at) >= maxSeenErrors {
		clear(s.at)
	}
	s.at[text] = now
	return true
}
