package bff_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
)

func TestLastHourForgetsOlderMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h bff.Hour
		requests := func() (all uint64) {
			for _, m := range h.List(time.Now()) {
				all += m.Requests
			}
			return all
		}
		for range 100 { // minutes
			h.Count(500, time.Millisecond)
			time.Sleep(time.Minute)
		}
		if got := requests(); got != 59 {
			t.Errorf("after the last minute has ended: got %d requests, want 59", got)
		}
		last := h.List(time.Now())[58]
		if last.Requests != 1 || last.ServerErrors != 1 || last.ClientErrors != 0 {
			t.Errorf("the last minute: got %+v, want one request with 500", last)
		}
		time.Sleep(time.Hour)
		if got := requests(); got != 0 {
			t.Errorf("after an hour: got %d requests, want none", got)
		}
	})
}

func TestLastHourEstimatesResponseTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h bff.Hour
		for i := range 100 {
			h.Count(200, time.Duration(i+1)*10*time.Millisecond)
		}
		h.Count(200, time.Hour)
		m := h.List(time.Now())[59]
		for name, test := range map[string]struct{ got, want time.Duration }{
			"median": {m.Median, 500 * time.Millisecond}, "95th percentile": {m.P95, 950 * time.Millisecond},
		} {
			if d := (test.got - test.want).Abs(); d > test.want/10 {
				t.Errorf("%s: got %v, want about %v", name, test.got, test.want)
			}
		}
		time.Sleep(time.Minute)
		h.Count(200, time.Hour)
		if got := h.List(time.Now())[59].Median; got != 10*time.Second {
			t.Errorf("beyond the last bound: got %v, want 10s", got)
		}
	})
}
