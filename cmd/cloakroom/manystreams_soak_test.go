//go:build soak

package main

import "testing"

// The test has a connection for each stream, and so does the replica: ulimit -n
// has to be 12000.
func TestSoakManyEventStreams(t *testing.T) { openManyStreams(t, 1000) }
