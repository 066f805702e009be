package main

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// logSettings are the level and the format of a log, which a reload can change.
// The zero value means INFO and JSON.
type logSettings struct {
	level slog.LevelVar
	text  atomic.Bool
}

// apply puts the settings in a configuration in force.
func (s *logSettings) apply(l *config.Log) {
	s.level.Set(l.MinLevel())
	s.text.Store(l.Format == "text")
}

// handler returns the handler of lines that are written to w.
func (s *logSettings) handler(w io.Writer) slog.Handler {
	opts := &slog.HandlerOptions{Level: &s.level}
	return &switchedHandler{&s.text, slog.NewTextHandler(w, opts), newJSONHandler(w, opts)}
}

// switchedHandler is the handler text if isText is set, otherwise json.
type switchedHandler struct {
	isText     *atomic.Bool
	text, json slog.Handler
}

// Enabled is that of both handlers, which have the same level.
func (h *switchedHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.json.Enabled(ctx, level)
}

func (h *switchedHandler) Handle(ctx context.Context, record slog.Record) error {
	if h.isText.Load() {
		return h.text.Handle(ctx, record)
	}
	return h.json.Handle(ctx, record)
}

func (h *switchedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &switchedHandler{h.isText, h.text.WithAttrs(attrs), h.json.WithAttrs(attrs)}
}

func (h *switchedHandler) WithGroup(name string) slog.Handler {
	return &switchedHandler{h.isText, h.text.WithGroup(name), h.json.WithGroup(name)}
}
