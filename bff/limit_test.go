package bff

import (
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimiterAllowsABurstAndThenARate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter[string](RateLimit{Rate: 4, Burst: 3})
		for i := range 3 {
			if wait := l.take("a"); wait != 0 {
				t.Errorf("event %d of the burst must wait %v", i+1, wait)
			}
		}
		for range 5 { // a refusal does not count
			if wait := l.take("a"); wait != 250*time.Millisecond {
				t.Errorf("beyond the burst: wait %v, want 250ms", wait)
			}
		}
		if wait := l.check("b"); wait != 0 {
			t.Errorf("check of another key: wait %v, want none", wait)
		}
		if wait := l.take("b"); wait != 0 {
			t.Errorf("take of another key: wait %v, want none", wait)
		}
		time.Sleep(250 * time.Millisecond)
		for range 2 {
			if l.check("a") != 0 {
				t.Error("a check consumes an event")
			}
		}
		if wait := l.take("a"); wait != 0 {
			t.Errorf("first event after a quarter of a second: wait %v, want none", wait)
		}
		if l.take("a") == 0 {
			t.Error("second event after a quarter of a second is allowed, want a wait")
		}
		time.Sleep(time.Hour)
		for range 3 {
			if l.take("a") != 0 {
				t.Error("no burst is allowed after an hour")
			}
		}
		if l.take("a") == 0 {
			t.Error("more than a burst is allowed after an hour")
		}
	})
}

func TestReloadKeepsBudgets(t *testing.T) {
	t.Parallel()
	newBudgets := func(limit RateLimit) *app {
		return &app{
			limits: Limits{Logins: limit}, logins: newLimiter[[16]byte](limit), exchanges: newLimiter[[16]byte](limit),
			refreshes: newLimiter[[16]byte](refreshLimit),
		}
	}
	limit, other := RateLimit{Rate: 1, Burst: 2}, RateLimit{Rate: 1, Burst: 3}
	for _, test := range []struct {
		now  RateLimit
		kept bool
	}{{limit, true}, {other, false}} {
		before, after := newBudgets(limit), newBudgets(test.now)
		after.keepLimiters(before)
		if after.refreshes != before.refreshes {
			t.Errorf("%v: the budgets of refreshes are full again", test.now)
		}
		if got := after.logins == before.logins; got != test.kept {
			t.Errorf("%v: budgets of logins kept: %v, want %v", test.now, got, test.kept)
		}
		if got := after.exchanges == before.exchanges; got != test.kept {
			t.Errorf("%v: budgets of code exchanges kept: %v, want %v", test.now, got, test.kept)
		}
	}
}

func TestLimiterMemoryIsBounded(t *testing.T) {
	t.Parallel()
	l := newLimiter[[16]byte](RateLimit{Rate: 1.0 / 3600, Burst: 2})
	busy := [16]byte{15: 1}
	l.take(busy)
	l.take(busy)
	for i := range 5 * maxLimited {
		var key [16]byte
		binary.BigEndian.PutUint64(key[:], uint64(i+1))
		l.take(key)
		if i%(maxLimited/4) == 0 && l.take(busy) == 0 {
			t.Fatalf("after %d other keys a key in use is forgotten", i)
		}
	}
	if n := len(l.recent) + len(l.older); n > maxLimited {
		t.Errorf("%d keys are kept, want at most %d", n, maxLimited)
	}
}

func TestAddressesThatShareALimit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b string
		same bool
	}{
		{"203.0.113.7", "203.0.113.7", true},
		{"203.0.113.7", "203.0.113.8", false},
		{"203.0.113.7", "::ffff:203.0.113.7", true},
		{"::ffff:203.0.113.7", "::ffff:203.0.113.8", false},
		{"2001:db8::1", "2001:db8::ffff:1", true},
		{"2001:db8:0:1::1", "2001:db8:0:2::1", false},
		{"fe80::1%eth0", "fe80::2%eth1", true},
		{"::1", "127.0.0.1", false},
		{"::203.0.113.7", "203.0.113.7", false},
		{"", "@", true},
	} {
		if got := addressKey(test.a) == addressKey(test.b); got != test.same {
			t.Errorf("%q and %q share a budget: %v, want %v", test.a, test.b, got, test.same)
		}
	}
}
