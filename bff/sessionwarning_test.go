package bff

import (
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

func TestWarningComesBeforeTheEarlierEnd(t *testing.T) {
	t.Parallel()
	start := time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		idleTimeout, warning time.Duration
		idle, absolute       time.Duration // the ends, after the start
		warned               time.Duration
		reason               session.Reason
	}{
		"idle": {30 * time.Minute, time.Minute, time.Hour, 12 * time.Hour,
			59 * time.Minute, "idle"},
		"the absolute end": {30 * time.Minute, time.Minute, 2 * time.Hour, 2 * time.Hour,
			119 * time.Minute, "lifetime"},
		"idle shortly before it": {8 * time.Hour, time.Minute, 597 * time.Minute, 10 * time.Hour,
			596 * time.Minute, "idle"},
		"half of a short idle timeout": {time.Minute, time.Minute, time.Hour, 12 * time.Hour,
			59*time.Minute + 30*time.Second, "idle"},
		"half of a short lifetime": {time.Hour, time.Hour, 10 * time.Minute, 10 * time.Minute,
			5 * time.Minute, "lifetime"},
	} {
		s := &sessionStream{app: &app{idleTimeout: test.idleTimeout}, warning: test.warning, session: &session.Session{
			CreatedAt: start, IdleExpiresAt: start.Add(test.idle), ExpiresAt: start.Add(test.absolute),
		}}
		if _, reason := s.nextEnd(); reason != test.reason {
			t.Errorf("%s: got reason %s, want %s", name, reason, test.reason)
		}
		if got := s.warnAt().Sub(start); got != test.warned {
			t.Errorf("%s: got a warning after %v, want %v", name, got, test.warned)
		}
	}
}

func TestReconnectDelaysAreSpread(t *testing.T) {
	t.Parallel()
	for open, most := range map[int]time.Duration{
		0: 5 * time.Second, 2000: 5 * time.Second, 10_000: 21 * time.Second, 1_000_000: 31 * time.Second,
	} {
		var longest time.Duration
		for range 1000 {
			d := reconnectDelay(open)
			if longest = max(longest, d); d < time.Second || d > most {
				t.Fatalf("%d streams: got %v, want 1 s to %v", open, d, most)
			}
		}
		if longest < most/2 {
			t.Errorf("%d streams: got at most %v, want some of up to %v", open, longest, most)
		}
	}
}
