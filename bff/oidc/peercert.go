package oidc

import (
	"crypto/tls"
	"maps"
	"sync"
	"time"
)

// peerCertificates are the ends of the certificates that the provider has
// shown.
type peerCertificates struct {
	mu      sync.Mutex           // guards expires
	expires map[string]time.Time // :: host, empty for an IP address → when its certificate expires
}

// record is tls.Config.VerifyConnection. It accepts every connection.
func (p *peerCertificates) record(state tls.ConnectionState) error {
	if len(state.PeerCertificates) > 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.expires == nil {
			p.expires = make(map[string]time.Time)
		}
		p.expires[state.ServerName] = state.PeerCertificates[0].NotAfter
	}
	return nil
}

// CertificateExpiry returns for each host of the provider when its certificate
// expires, as of the last connection. IP addresses share an empty name. It
// knows nothing of the connections of Config.HTTPClient.
func (c *Client) CertificateExpiry() map[string]time.Time {
	c.certificates.mu.Lock()
	defer c.certificates.mu.Unlock()
	return maps.Clone(c.certificates.expires)
}
