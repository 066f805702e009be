package config

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
)

// SessionKeys returns the keys in session.keys, without those that are not
// valid.
func (c *Config) SessionKeys() [][]byte { return c.sessionKeys(new(Errors)) }

// sessionKeys decodes session.keys.
func (c *Config) sessionKeys(problems *Errors) [][]byte {
	var keys [][]byte
	for i, k := range c.Session.Keys {
		fail := func(problem string) {
			problems.add(fmt.Sprintf("session.keys[%d]", i), "[redacted] %s", problem)
		}
		key, err := decodeBase64(k.Reveal())
		if err != nil || len(key) != 32 {
			fail("is not the base64 of 32 bytes; cloakroom keygen prints a valid key")
			continue
		}
		if slices.ContainsFunc(keys, func(other []byte) bool { return bytes.Equal(other, key) }) {
			fail("occurs twice; list each key once")
			continue
		}
		if why := notRandom(key); why != "" {
			fail("is not random: " + why + "; cloakroom keygen prints a random key")
			continue
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 && len(c.Session.Keys) > 0 {
		return [][]byte{bytes.Repeat([]byte("k"), 32)} // otherwise they are reported as missing too
	}
	return keys
}

// notRandom returns why a key is certainly not random, or "". The probability
// that 32 random bytes have fewer than 8 different values is 10^-36.
func notRandom(key []byte) string {
	different := make(map[byte]bool)
	steps := make(map[byte]bool)
	for i, b := range key {
		different[b] = true
		if i > 0 {
			steps[b-key[i-1]] = true
		}
	}
	switch {
	case len(different) == 1:
		return fmt.Sprintf("all bytes are 0x%02x", key[0])
	case len(steps) == 1:
		return "its bytes are a sequence with equal steps"
	case len(different) < 8:
		return fmt.Sprintf("it has only %d different bytes", len(different))
	}
	return ""
}

// decodeBase64 decodes both alphabets, with padding or without (RFC 4648).
func decodeBase64(text string) ([]byte, error) {
	text = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(text), "=")
	return base64.RawStdEncoding.DecodeString(text)
}
