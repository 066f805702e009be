package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/expiry"
)

const (
	// certificateCheck is the interval of checks for changed files.
	certificateCheck = 2 * time.Second
	// certificateReminder is the interval of warnings of a certificate that
	// expires soon.
	certificateReminder = 24 * time.Hour
)

// certificate is the certificate of the public listener. A renewed certificate
// is used from the next handshake after it was detected.
type certificate struct {
	log     *slog.Logger
	current atomic.Pointer[tls.Certificate]

	mu       sync.Mutex // guards all below
	files    config.TLS
	seen     [2]fileState // of the certificate and the key at the last read
	failed   string       // error of the last read; empty: none
	reminded time.Time
}

// loadCertificate reads the files. The error joins a *config.Error for each
// mistake.
func loadCertificate(files config.TLS, log *slog.Logger) (*certificate, error) {
	c := &certificate{files: files, log: log}
	c.seen = c.state()
	loaded, err := c.load()
	if err != nil {
		return nil, err
	}
	c.current.Store(loaded)
	return c, nil
}

// use serves the certificate of other, which nothing else uses, from now on.
func (c *certificate) use(other *certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files, c.seen, c.failed, c.reminded = other.files, other.seen, "", time.Time{}
	c.current.Store(other.current.Load())
}

func (c *certificate) load() (*tls.Certificate, error) {
	var unread []error // one for each file
	read := func(key, file string) []byte {
		text, err := os.ReadFile(file)
		if err != nil {
			unread = append(unread, &config.Error{Key: key, Value: file, Err: err})
		}
		return text
	}
	certPEM := read("server.tls.cert_file", c.files.CertFile)
	keyPEM := read("server.tls.key_file", c.files.KeyFile)
	if err := errors.Join(unread...); err != nil {
		return nil, err
	}
	loaded, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		err := fmt.Errorf("%s and %s are not a certificate and its key: %w",
			c.files.CertFile, c.files.KeyFile, err)
		return nil, &config.Error{Key: "server.tls", Err: err}
	}
	if loaded.Leaf == nil {
		err := errors.New("the certificate cannot be parsed")
		return nil, &config.Error{Key: "server.tls.cert_file", Value: c.files.CertFile, Err: err}
	}
	return &loaded, nil
}

// state returns the states of both files. It follows symbolic links, such as
// those of a mounted Kubernetes secret.
func (c *certificate) state() [2]fileState {
	return [2]fileState{stateOf(c.files.CertFile), stateOf(c.files.KeyFile)}
}

// tlsConfig returns the configuration of a listener with the certificate.
func (c *certificate) tlsConfig() *tls.Config {
	return &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
	}
}

// watch reloads the certificate when its files change, until ctx ends. It
// checks them at each signal of now, and every certificateCheck.
func (c *certificate) watch(ctx context.Context, now <-chan struct{}) {
	tick := time.NewTicker(certificateCheck)
	defer tick.Stop()
	for {
		c.remind(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-now:
		case <-tick.C:
		}
		c.reload()
	}
}

// reload reads the files if they have changed. If they are not a certificate
// and its key, the previous certificate stays in use: files are often replaced
// one after the other.
func (c *certificate) reload() {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := c.state()
	if state == c.seen && c.failed == "" { // after an error, permissions may have changed
		return
	}
	loaded, err := c.load()
	if c.state() != state {
		return // they are being written; the next check reads them
	}
	if err != nil {
		if state != c.seen || err.Error() != c.failed {
			c.log.Error("certificate not replaced; the previous one stays in use", "err", err)
		}
		c.seen, c.failed = state, err.Error()
		return
	}
	c.seen, c.failed = state, ""
	c.current.Store(loaded)
	c.reminded = time.Time{}
	c.log.Info("certificate replaced", "cert_file", c.files.CertFile, "not_after", loaded.Leaf.NotAfter)
}

// remind logs that the certificate expires soon, has expired, or is not valid
// yet.
func (c *certificate) remind(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	leaf := c.current.Load().Leaf
	isFine := now.Before(expiry.Near(leaf)) && !now.Before(leaf.NotBefore)
	if isFine || now.Sub(c.reminded) < certificateReminder {
		return
	}
	c.reminded = now
	attrs := []any{"cert_file", c.files.CertFile, "subject", subject(leaf),
		"not_before", leaf.NotBefore, "not_after", leaf.NotAfter}
	switch {
	case now.After(leaf.NotAfter):
		c.log.Error("certificate expired; browsers refuse it", attrs...)
	case now.Before(leaf.NotBefore):
		c.log.Error("certificate not valid yet; browsers refuse it", attrs...)
	default:
		c.log.Warn("certificate expires soon", attrs...)
	}
}

// subject returns the first DNS name of a certificate, or else its subject:
// modern certificates have no common name.
func subject(leaf *x509.Certificate) string {
	if len(leaf.DNSNames) > 0 {
		return leaf.DNSNames[0]
	}
	return leaf.Subject.String()
}
