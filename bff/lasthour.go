package bff

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/adminpage"
	"github.com/cloakroom-bff/cloakroom/session"
)

// lastHour counts what this replica does in each minute, for the page of
// administrators. Its zero value has counted nothing.
type lastHour struct {
	mu      sync.Mutex           // held while a minute is reset
	minutes [hourRing]minuteInfo // :: Unix minute modulo hourRing
}

const (
	shownMinutes = 60
	// hourRing is how many minutes are kept. It is more than are shown, so that
	// a late count does not meet the reset of its minute.
	hourRing = 64
)

// minuteInfo is what happened in one minute.
type minuteInfo struct {
	minute                     atomic.Int64 // since 1970
	signIns, refused           atomic.Uint64
	refreshes, failed          atomic.Uint64
	requests                   atomic.Uint64
	serverErrors, clientErrors atomic.Uint64
	responseTimes              [len(timeBounds) + 1]atomic.Uint64 // how many were up to each bound, and beyond
}

// timeBounds are upper bounds of response times, in milliseconds.
var timeBounds = [...]int64{
	1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 7000, 10_000,
}

// at returns the counters of the minute of now.
func (h *lastHour) at(now time.Time) *minuteInfo {
	minute := now.Unix() / 60
	m := &h.minutes[minute%hourRing]
	if m.minute.Load() == minute {
		return m
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.minute.Load() != minute {
		for _, counter := range []*atomic.Uint64{
			&m.signIns, &m.refused, &m.refreshes, &m.failed, &m.requests, &m.serverErrors, &m.clientErrors,
		} {
			counter.Store(0)
		}
		for i := range m.responseTimes {
			m.responseTimes[i].Store(0)
		}
		m.minute.Store(minute)
	}
	return m
}

// countEvent counts an event.
func (h *lastHour) countEvent(e Event) {
	m := h.at(time.Now())
	switch e.Kind {
	case EventKind(session.SessionStarted):
		m.signIns.Add(1)
	case LoginRefused:
		if !isSilentRefusal(e.Reason) {
			m.refused.Add(1)
		}
	case EventKind(session.SessionRefreshed):
		m.refreshes.Add(1)
	case EventKind(session.RefreshFailed):
		m.failed.Add(1)
	}
}

// countRequest counts a request that has ended, by the index of its class. The
// time it took counts if timed is true: the request was one to an upstream, and
// no stream.
func (h *lastHour) countRequest(now time.Time, class int, took time.Duration, timed bool) {
	m := h.at(now)
	m.requests.Add(1)
	switch classes[class] {
	case "5xx":
		m.serverErrors.Add(1)
	case "4xx":
		m.clientErrors.Add(1)
	}
	if timed {
		i := 0
		for i < len(timeBounds) && took > time.Duration(timeBounds[i])*time.Millisecond {
			i++
		}
		m.responseTimes[i].Add(1)
	}
}

// list returns the last shownMinutes minutes, the oldest first.
func (h *lastHour) list(now time.Time) []adminpage.Minute {
	list := make([]adminpage.Minute, shownMinutes)
	current := now.Unix() / 60
	for i := range list {
		minute := current - shownMinutes + 1 + int64(i)
		m := &h.minutes[minute%hourRing]
		if m.minute.Load() != minute {
			continue
		}
		list[i] = adminpage.Minute{
			SignIns: m.signIns.Load(), RefusedSignIns: m.refused.Load(),
			Refreshes: m.refreshes.Load(), FailedRefreshes: m.failed.Load(), Requests: m.requests.Load(),
			ServerErrors: m.serverErrors.Load(), ClientErrors: m.clientErrors.Load(),
			Median: m.quantile(0.5), P95: m.quantile(0.95),
		}
	}
	return list
}

// quantile returns an estimate of the response time that a part of the requests
// did not exceed; zero if there were none.
func (m *minuteInfo) quantile(part float64) time.Duration {
	var counts [len(timeBounds) + 1]uint64
	var total uint64
	for i := range counts {
		counts[i] = m.responseTimes[i].Load()
		total += counts[i]
	}
	if total == 0 {
		return 0
	}
	rank, below := part*float64(total), 0.0
	for i, n := range counts[:len(timeBounds)] {
		if below += float64(n); below < rank || n == 0 {
			continue
		}
		lower := 0.0
		if i > 0 {
			lower = float64(timeBounds[i-1])
		}
		inside := 1 - (below-rank)/float64(n)
		return time.Duration((lower + inside*(float64(timeBounds[i])-lower)) * float64(time.Millisecond))
	}
	return time.Duration(timeBounds[len(timeBounds)-1]) * time.Millisecond
}
