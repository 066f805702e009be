package testenv

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// given are the ports that running tests of this process have.
var given struct {
	mu    sync.Mutex
	ports map[int]bool // guarded by mu
}

// FreePort returns a TCP port of the loopback interface on which nothing
// listens. It is below the ephemeral ports, so that no outgoing connection
// takes it before a server listens, or while the server restarts. No other test
// of this process gets it before this one has ended.
func FreePort(t testing.TB) string {
	t.Helper()
	return freePorts(t, 1)
}

// FreePair is FreePort for two ports. It returns the lower one.
func FreePair(t testing.TB) string {
	t.Helper()
	return freePorts(t, 2)
}

// freePorts returns the first one of n ports in a row.
func freePorts(t testing.TB, n int) string {
	t.Helper()
	given.mu.Lock()
	defer given.mu.Unlock()
	for range 100 {
		first := 10000 + rand.IntN(22000)
		free := true
		for port := first; port < first+n; port++ {
			free = free && !given.ports[port] && isFree(port)
		}
		if !free {
			continue
		}
		if given.ports == nil {
			given.ports = make(map[int]bool)
		}
		for port := first; port < first+n; port++ {
			given.ports[port] = true
		}
		t.Cleanup(func() {
			given.mu.Lock()
			defer given.mu.Unlock()
			for port := first; port < first+n; port++ {
				delete(given.ports, port)
			}
		})
		return strconv.Itoa(first)
	}
	t.Fatal("got no free port in 100 tries")
	return ""
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	l.Close()
	return true
}
