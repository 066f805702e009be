package oidc

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"sync"
)

// peerCertificates are the certificates that the provider has shown.
type peerCertificates struct {
	mu    sync.Mutex                   // guards shown
	shown map[string]*x509.Certificate // :: host, empty for an IP address → its certificate
}

// record is tls.Config.VerifyConnection. It accepts every connection.
func (p *peerCertificates) record(state tls.ConnectionState) error {
	if len(state.PeerCertificates) > 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.shown == nil {
			p.shown = make(map[string]*x509.Certificate)
		}
		p.shown[state.ServerName] = state.PeerCertificates[0]
	}
	return nil
}

// PeerCertificates returns the certificate of each host of the provider, as of
// the last connection. IP addresses share an empty name. It knows nothing of
// the connections of Config.HTTPClient.
func (c *Client) PeerCertificates() map[string]*x509.Certificate {
	c.certificates.mu.Lock()
	defer c.certificates.mu.Unlock()
	return maps.Clone(c.certificates.shown)
}
