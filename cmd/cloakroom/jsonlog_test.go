package main

import (
	"bytes"
	"errors"
	"log/slog"
	"math"
	"testing"
	"time"
)

// Each line is that of slog.JSONHandler.
func FuzzJSONLog(f *testing.F) {
	f.Add("request", "path", "/api/x", int64(200), 1.5, uint8(0))
	f.Add("", "", "\"\\\x00\x7fä\u2028\xff<>&", int64(-1), 1e-7, uint8(1))
	f.Add("msg\n", "key\"", "x", int64(math.MinInt64), 1e21, uint8(2))
	f.Add("m", "level", "x", int64(0), -0.5, uint8(3))
	f.Add("m", "k", "x", int64(0), math.Copysign(0, -1), uint8(4))
	f.Fuzz(func(t *testing.T, msg, key, text string, n int64, float float64, kind uint8) {
		var got, want bytes.Buffer
		for _, to := range []struct {
			buf     *bytes.Buffer
			handler slog.Handler
		}{{&got, newJSONHandler(&got, nil)}, {&want, slog.NewJSONHandler(&want, nil)}} {
			at := time.Date(2026, 11, 29, 1, 2, 3, int(uint32(n))%1e9, time.UTC)
			level := slog.Level(kind % 12)
			record := slog.NewRecord(at, level, msg, 0)
			record.Add(key, text, "n", n, "float", float)
			handler := to.handler
			switch kind % 5 {
			case 1:
				record.Add("any", errors.New(text), "list", []string{text}, "at", at, "d", time.Second, "yes", true)
			case 2:
				handler = handler.WithAttrs([]slog.Attr{slog.String("with", text)})
			case 3:
				handler = handler.WithGroup("group")
			case 4:
				record.Add(slog.Group("group", "a", 1))
			}
			if err := handler.Handle(t.Context(), record); err != nil {
				t.Fatal(err)
			}
		}
		if got.String() != want.String() {
			t.Errorf("got  %q\nwant %q", got.String(), want.String())
		}
	})
}
