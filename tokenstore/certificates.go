package tokenstore

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"sync"
)

// certificates are those of the connections to Redis with TLS.
type certificates struct {
	mu    sync.Mutex                   // guards all below
	peers map[string]*x509.Certificate // :: host, empty for an IP address → what it has shown last
	own   *x509.Certificate            // of the client; nil: none yet
}

// record is tls.Config.VerifyConnection. It accepts every connection.
func (c *certificates) record(state tls.ConnectionState) error {
	if len(state.PeerCertificates) > 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.peers == nil {
			c.peers = make(map[string]*x509.Certificate)
		}
		c.peers[state.ServerName] = state.PeerCertificates[0]
	}
	return nil
}

// recordOwn records the certificate of the client, which may be nil.
func (c *certificates) recordOwn(cert *tls.Certificate) {
	if cert == nil || cert.Leaf == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = cert.Leaf
}

// Certificates returns the certificates of the connections with TLS, as of the
// last one: those that the servers have shown, by host, and that of the client,
// which is nil without one. IP addresses share an empty name.
func (s *Redis) Certificates() (servers map[string]*x509.Certificate, client *x509.Certificate) {
	c := &s.certificates
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.peers), c.own
}
