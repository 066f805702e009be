package expiry_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/expiry"
)

func TestNear(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for lifetime, left := range map[time.Duration]time.Duration{
		365 * day: 14 * day, 90 * day: 14 * day, 60 * day: 10 * day, 6 * day: day, time.Hour: 10 * time.Minute,
	} {
		end := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
		near := expiry.Near(&x509.Certificate{NotBefore: end.Add(-lifetime), NotAfter: end})
		if got := end.Sub(near); got != left {
			t.Errorf("a certificate for %v: got %v before the end, want %v", lifetime, got, left)
		}
	}
}
