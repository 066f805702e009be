package bff

import (
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/adminpage"
)

// Hour is a lastHour.
type Hour struct{ lastHour }

// Count counts a request to a route.
func (h *Hour) Count(status int, took time.Duration) {
	h.countRequest(time.Now(), classOf(status), took, true)
}

// List returns the last hour.
func (h *Hour) List(now time.Time) []adminpage.Minute { return h.list(now) }
