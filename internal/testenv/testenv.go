// Package testenv reports which tests are to run, and has their ports and keys.
//
// go test ./... is a developer's loop: it runs in under a minute. Tests with
// many clients, much data, failovers or long waits run if CLOAKROOM_TEST_ALL is
// set, as make test does.
package testenv

import (
	"flag"
	"os"
	"testing"
)

// All reports whether every test is to run. A test that cannot run then fails.
func All() bool { return os.Getenv("CLOAKROOM_TEST_ALL") != "" }

// Slow skips a test that is too slow for the developer's loop, unless all tests
// are to run.
func Slow(t testing.TB) {
	t.Helper()
	if !All() {
		t.Skip("slow; CLOAKROOM_TEST_ALL=1 runs it")
	}
}

// Main runs the tests of a package, of which most wait for other processes:
// 32 at a time, unless -parallel says otherwise or all tests are to run.
func Main(m *testing.M) {
	if !All() {
		flag.Set("test.parallel", "32")
	}
	os.Exit(m.Run())
}
