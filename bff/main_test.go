package bff_test

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"
)

// TestMain runs more tests side by side than there are processors: most of them
// wait most of the time.
func TestMain(m *testing.M) {
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		parallel.Value.Set(strconv.Itoa(4 * runtime.GOMAXPROCS(0)))
	}
	os.Exit(m.Run())
}

// slow skips a test that is not for the developer's loop: make test runs it.
func slow(t *testing.T) {
	t.Helper()
	if os.Getenv("CLOAKROOM_TEST_ALL") == "" {
		t.Skip("slow; CLOAKROOM_TEST_ALL=1 runs it")
	}
}
