package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"

	"github.com/cloakroom-bff/cloakroom/bff/adminpage"
	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// adminHandler returns the handler of the admin listener.
func (b *broker) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", b.server.Admin())
	mux.Handle("POST /admin/reload", b.server.RequireAdmin(http.HandlerFunc(b.serveReload)))
	mux.Handle("GET /metrics", b.server.RequireAdmin(metricsHandler(b.newRegistry(), b.log)))
	page := b.server.AdminPage(b.completePage)
	mux.Handle("GET /admin/{$}", page)
	mux.Handle("/admin/page/", page)
	mux.Handle("GET /admin", http.RedirectHandler("/admin/", http.StatusMovedPermanently))
	mux.Handle("GET /admin/replicas", b.server.RequireAdmin(http.HandlerFunc(b.serveReplicas)))
	for path, methods := range map[string]string{ // those of "/" would be 404
		"/admin/reload": "POST", "/metrics": "GET, HEAD", "/admin/{$}": "GET, HEAD", "/admin/replicas": "GET, HEAD",
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Allow", methods)
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		})
	}
	return mux
}

// completePage adds to the page for administrators what the server does not
// know.
func (b *broker) completePage(ctx context.Context, p *adminpage.Page) {
	version, commit := buildInfo()
	if p.Version = version; commit != "unknown" {
		p.Version += ", " + commit[:min(len(commit), 12)]
	}
	p.Settings = settings("", b.config().LogValue())
	list, err := b.replicas.List(ctx)
	if err != nil {
		b.log.Warn("replicas not listed", "err", err)
		p.ReplicasError = "The store failed, so the replicas are not known."
	}
	for _, r := range list {
		differs := append(slices.DeleteFunc(slices.Clone(r.Differs), func(key string) bool {
			return key == "configuration" && len(r.Settings) > 0
		}), r.Settings...)
		p.Replicas = append(p.Replicas, adminpage.Replica{
			Name: r.Replica, Self: r.Self, Version: r.Version, StartedAt: r.StartedAt, SeenAt: r.SeenAt,
			Differs: differs,
		})
	}
}

// settings returns the keys and values in a group of the configuration.
func settings(prefix string, group slog.Value) (all []adminpage.Setting) {
	for _, attr := range group.Group() {
		key := prefix + attr.Key
		if attr.Value.Kind() == slog.KindGroup {
			all = append(all, settings(key+".", attr.Value)...)
		} else {
			all = append(all, adminpage.Setting{Key: key, Value: attr.Value.String()})
		}
	}
	return all
}

// serveReplicas lists the replicas.
func (b *broker) serveReplicas(w http.ResponseWriter, r *http.Request) {
	list, err := b.replicas.List(r.Context())
	if err != nil {
		b.log.Warn("replicas not listed", "err", err)
		http.Error(w, "the store cannot be read; the log has the error", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(list)
}

// reloadResult is the body of a response to POST /admin/reload.
type reloadResult struct {
	Applied  bool      `json:"applied"`
	Warnings []string  `json:"warnings,omitempty"`
	Mistakes []mistake `json:"mistakes,omitempty"`
}

// mistake is one mistake in a configuration.
type mistake struct {
	Key     string `json:"key,omitempty"`    // empty: the whole source
	Source  string `json:"source,omitempty"` // a file with a line, or an environment variable
	Value   string `json:"value,omitempty"`  // [redacted] if it is a secret
	Problem string `json:"problem"`
	Restart bool   `json:"restart,omitempty"` // the value is valid, but only a restart applies it
}

// serveReload reloads the configuration. The response lists the mistakes.
func (b *broker) serveReload(w http.ResponseWriter, r *http.Request) {
	// The reload continues if the client disconnects.
	err := b.reload(context.WithoutCancel(r.Context()))
	result := reloadResult{Applied: err == nil}
	status := http.StatusOK
	var problems config.Errors
	switch {
	case err == nil:
		result.Warnings = b.config().Warnings().Lines()
	case errors.As(err, &problems):
		status = http.StatusUnprocessableEntity
		for _, p := range problems {
			result.Mistakes = append(result.Mistakes, mistake{
				Key: p.Key, Source: p.Source, Value: p.Value, Problem: p.Err.Error(),
				Restart: errors.Is(p, config.ErrNeedsRestart),
			})
		}
	default:
		status = http.StatusServiceUnavailable
		result.Mistakes = []mistake{{Problem: err.Error()}}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(result)
}
