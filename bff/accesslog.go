package bff

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// LogRequests is which requests have a line in the log.
type LogRequests string

const (
	// RequestsAll, the default, logs all requests.
	RequestsAll LogRequests = "all"
	// RequestsErrors logs those with a status of 400 or more, and those whose
	// response ended too early.
	RequestsErrors LogRequests = "errors"
	// RequestsNone logs no requests.
	RequestsNone LogRequests = "none"
)

// requestFilter decides which requests have a line in the log.
type requestFilter struct {
	requests LogRequests
	exclude  []string // paths, each with all below it
}

// set takes the settings of a Config. The error joins a *ConfigError for every
// mistake.
func (f *requestFilter) set(cfg *Config) error {
	f.requests, f.exclude = cmp.Or(cfg.LogRequests, RequestsAll), cfg.LogExclude
	var errs []error
	if !slices.Contains([]LogRequests{RequestsAll, RequestsErrors, RequestsNone}, f.requests) {
		errs = append(errs, configerr.New("LogRequests", string(f.requests),
			fmt.Errorf("%q is not all, errors or none", f.requests)))
	}
	for i, path := range f.exclude {
		if urlpath.Check(path) != nil {
			errs = append(errs, configerr.New(fmt.Sprintf("LogExclude[%d]", i), path,
				fmt.Errorf("%q is not a path such as /assets/", path)))
		}
	}
	return errors.Join(errs...)
}

// includes reports whether a request has a line. failed means that its response
// is a problem or ended too early.
func (f *requestFilter) includes(path string, status int, failed bool) bool {
	switch f.requests {
	case RequestsNone:
		return false
	case RequestsErrors:
		if status < http.StatusBadRequest && !failed {
			return false
		}
	}
	return !slices.ContainsFunc(f.exclude, func(excluded string) bool { return urlpath.Under(path, excluded) })
}

// logRequest writes the line of the access log of a request that has ended at a
// time, as the configuration in force demands. That may be a later one than
// that of the request.
func (a *app) logRequest(w *response, ended time.Time) {
	if w.problem == nil && w.exchange.Err != nil {
		w.problem = problemOf(w.exchange.Err)
	}
	level := slog.LevelInfo
	if w.problem != nil {
		level = w.problem.Level()
	}
	status := cmp.Or(w.exchange.Status, w.status)
	filter, path := &a.server.current.Load().logged, w.path
	if inner, ok := a.pathBelowBase(path); ok {
		path = inner
	}
	if !filter.includes(path, status, w.problem != nil) || !a.log.Enabled(context.Background(), level) {
		return
	}
	attrs := append(make([]slog.Attr, 0, 16),
		slog.String("request", w.requestID),
		slog.String("client", w.client),
		slog.String("method", truncate(w.method, 32)),
		slog.String("path", truncate(w.path, maxLogged)),
		slog.Int("status", status),
		slog.Int64("bytes", w.bytes+w.exchange.Bytes),
		slog.Float64("ms", milliseconds(ended.Sub(w.began))),
	)
	if w.route != "" {
		attrs = append(attrs, slog.String("route", w.route))
	}
	if w.session != "" {
		attrs = append(attrs, slog.String("session", w.session))
	}
	if user := a.user(w.subject); user != "" {
		attrs = append(attrs, slog.String("user", user))
	}
	if w.exchange.Upstream != "" {
		attrs = append(attrs, slog.String("upstream", w.exchange.Upstream),
			slog.Float64("upstream_ms", milliseconds(w.exchange.UpstreamTime)))
	}
	if w.waited > 0 {
		attrs = append(attrs, slog.Float64("wait_ms", milliseconds(w.waited)))
	}
	if trace := w.traceID(); trace != "" {
		attrs = append(attrs, slog.String("trace", trace))
	}
	if w.exchange.Retries > 0 {
		attrs = append(attrs, slog.Int("retries", w.exchange.Retries))
	}
	if w.problem != nil {
		attrs = append(attrs, slog.String("err", truncate(w.problem.Error(), maxLogged)))
	}
	// Logger.LogAttrs would look for the position in the source, which costs as
	// much as four attributes.
	record := slog.NewRecord(ended, level, "request", 0)
	record.AddAttrs(attrs...)
	a.log.Handler().Handle(context.Background(), record)
}
