package bff

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// Admin returns the handler for an admin listener, which must not be public.
// GET /healthz is always 200. GET /readyz is 200 if the store responds and the
// provider has been discovered at least once, and 503 otherwise.
func (s *Server) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := s.current.Load().ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok\n")
	})
	return mux
}

func (a *app) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var errs []error
	if _, _, _, err := a.store.Get(ctx, "readyz"); err != nil {
		errs = append(errs, errors.New("store: no response"))
		a.log.WarnContext(ctx, "not ready: the store does not respond", "err", err)
	}
	if !a.provider.Discovered() {
		errs = append(errs, errors.New("provider: not found yet"))
	}
	return errors.Join(errs...)
}
