package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// adminHandler returns the handler of the admin listener.
func (b *broker) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", b.server.Admin())
	mux.Handle("POST /admin/reload", b.server.RequireAdmin(http.HandlerFunc(b.serveReload)))
	mux.Handle("GET /metrics", b.server.RequireAdmin(metricsHandler(b.newRegistry(), b.log)))
	mux.Handle("GET /admin/replicas", b.server.RequireAdmin(http.HandlerFunc(b.serveReplicas)))
	return mux
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
