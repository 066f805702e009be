package config

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// certPool reads the certificates in a file. Without a file it returns nil,
// which means the CAs of the system.
func certPool(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s contains no certificate in PEM", file)
	}
	return pool, nil
}

// parseKeys reads the private keys in a text in PEM: PKCS #8, PKCS #1 or SEC 1.
func parseKeys(text []byte) ([]crypto.Signer, error) {
	var keys []crypto.Signer
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			if len(bytes.TrimSpace(text)) > 0 {
				return nil, errors.New("does not consist of private keys in PEM")
			}
			return keys, nil
		}
		text = rest
		if block.Type == "EC PARAMETERS" { // openssl ecparam writes them before the key, which repeats them
			continue
		}
		var key any
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if block.Type == "RSA PRIVATE KEY" {
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		} else if block.Type == "EC PRIVATE KEY" {
			key, err = x509.ParseECPrivateKey(block.Bytes)
		}
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, fmt.Errorf("contains a PEM block of type %q that is not an unencrypted private key",
				block.Type)
		}
		keys = append(keys, signer)
	}
}

// load reads the files. It returns nil if none is configured, and after a
// mistake, which it adds to problems with a key below key.
func (t UpstreamTLS) load(key string, problems *Errors) *tls.Config {
	if t == (UpstreamTLS{}) {
		return nil
	}
	roots, err := certPool(t.CAFile)
	if err != nil {
		problems.add(key+".ca_file", "%w", err)
	}
	cfg := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	switch {
	case t.CertFile == "" && t.KeyFile == "":
		if err != nil {
			return nil
		}
		return cfg
	case t.CertFile == "" || t.KeyFile == "":
		problems.add(key, "set both cert_file and key_file, or neither")
		return nil
	}
	cert, certErr := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if certErr != nil {
		problems.add(key+".cert_file", "%q and key_file %q are not a certificate and its key: %w",
			t.CertFile, t.KeyFile, certErr)
		addUnreadKey(t.CertFile, t.KeyFile, key+".key_file", problems)
	}
	if err != nil || certErr != nil {
		return nil
	}
	cfg.Certificates = []tls.Certificate{cert}
	return cfg
}

// addUnreadKey reports that a private key cannot be read if its certificate
// cannot either: tls.LoadX509KeyPair reports the certificate alone.
func addUnreadKey(certFile, keyFile, key string, problems *Errors) {
	if _, err := os.ReadFile(certFile); err == nil {
		return
	}
	if _, err := os.ReadFile(keyFile); err != nil {
		problems.add(key, "%w", err)
	}
}

// Config returns the TLS configuration for a connection. Its files are read.
// The error is an Errors.
func (t UpstreamTLS) Config() (*tls.Config, error) {
	var problems Errors
	cfg := t.load("upstream_tls", &problems)
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return cfg, problems.orNil()
}
