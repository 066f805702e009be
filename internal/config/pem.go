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

// certPool reads the certificates of a file; nil where there is none, which means those of the system.
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
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
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
				return nil, errors.New("is not private keys in PEM")
			}
			return keys, nil
		}
		text = rest
		if block.Type == "EC PARAMETERS" { // openssl ecparam writes them before the key, which has them too
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
			return nil, fmt.Errorf("holds a PEM block of type %q that is not a private key without a password", block.Type)
		}
		keys = append(keys, signer)
	}
}

// load reads the files; nil where none is named.
func (t UpstreamTLS) load() (*tls.Config, error) {
	if t == (UpstreamTLS{}) {
		return nil, nil
	}
	roots, err := certPool(t.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	cfg := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if t.CertFile != "" || t.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file and key_file: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}
