package testenv

import (
	"crypto/rand"
	"crypto/rsa"
	"sync"
	"testing"
)

var rsaKeys struct {
	mu   sync.Mutex
	free []*rsa.PrivateKey // guarded by mu
}

// RSAKey returns a key of 2048 bits that no other running test has. When the
// test ends, another one may get it: making one takes more time than most
// tests.
func RSAKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	rsaKeys.mu.Lock()
	defer rsaKeys.mu.Unlock()
	var key *rsa.PrivateKey
	if n := len(rsaKeys.free); n > 0 {
		key, rsaKeys.free = rsaKeys.free[n-1], rsaKeys.free[:n-1]
	} else {
		var err error
		if key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		rsaKeys.mu.Lock()
		defer rsaKeys.mu.Unlock()
		rsaKeys.free = append(rsaKeys.free, key)
	})
	return key
}
