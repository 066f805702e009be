// Package expiry decides when the end of a certificate is near.
package expiry

import (
	"crypto/x509"
	"time"
)

// longest is how long before its end a certificate needs attention at most.
// Certificates that are renewed automatically are renewed before.
const longest = 14 * 24 * time.Hour

// Near returns when a certificate that was not renewed needs attention: when a
// sixth of its lifetime is left, or 14 days if that is later. A certificate
// that lives for days or hours is renewed when a half or a third is left.
func Near(cert *x509.Certificate) time.Time {
	lifetime := cert.NotAfter.Sub(cert.NotBefore)
	return cert.NotAfter.Add(-min(longest, lifetime/6))
}
