package redistest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Sentinel is a Redis master named cloakroom with two replicas, watched by
// three sentinels, two of which must agree that the master is down. They
// believe so after a second of silence. Nothing is saved: a server that was
// killed comes back empty.
type Sentinel struct {
	t         testing.TB
	servers   []*Server // the master of the beginning and its replicas
	sentinels []*Server
}

// StartSentinel starts the six and returns when every sentinel knows both
// replicas and both other sentinels.
func StartSentinel(t testing.TB) *Sentinel {
	t.Helper()
	c := &Sentinel{t: t}
	master := startUnsaved(t)
	_, port, _ := net.SplitHostPort(master.Addr())
	c.servers = []*Server{master, startUnsaved(t, "--replicaof", "127.0.0.1", port), startUnsaved(t, "--replicaof", "127.0.0.1", port)}
	// A sentinel hears of replicas from the master's INFO, so they come first.
	await(t, 15*time.Second, "both replicas have the master's data", func() bool {
		return strings.Count(master.ask(time.Second, "INFO", "replication"), "state=online") == 2
	})
	for range 3 {
		s := start(t, func(s *Server, ownPort string) {
			dir := t.TempDir()
			conf := filepath.Join(dir, "sentinel.conf") // Sentinels write what they learn into their file.
			if err := os.WriteFile(conf, fmt.Appendf(nil, `port %s
bind 127.0.0.1
dir %s
sentinel monitor cloakroom 127.0.0.1 %s 2
sentinel down-after-milliseconds cloakroom 1000
sentinel failover-timeout cloakroom 3000
`, ownPort, dir, port), 0o600); err != nil {
				t.Fatal(err)
			}
			s.args = []string{conf, "--sentinel"}
		})
		// Sentinels talk more often than in production, to be quick, and go on
		// where a busy machine made them pause, instead of distrusting their
		// clock for half a minute.
		s.must("SENTINEL", "DEBUG", "INFO-PERIOD", "1000", "PUBLISH-PERIOD", "300", "TILT-TRIGGER", "20000")
		c.sentinels = append(c.sentinels, s)
	}
	await(t, 20*time.Second, "all sentinels know the replicas and each other", func() bool {
		for _, s := range c.sentinels {
			master := s.ask(time.Second, "INFO", "sentinel")
			replicas := pairs(s.ask(time.Second, "SENTINEL", "REPLICAS", "cloakroom"), "master-link-status")
			quorum := s.ask(time.Second, "SENTINEL", "CKQUORUM", "cloakroom")
			if !strings.Contains(master, "status=ok,") || !strings.Contains(master, "slaves=2,sentinels=3") ||
				strings.Join(replicas, " ") != "ok ok" || !strings.HasPrefix(quorum, "+OK 3 usable") {
				return false
			}
		}
		return true
	})
	return c
}

// startUnsaved starts a redis-server that saves nothing and lets its replicas
// have its data at once.
func startUnsaved(t testing.TB, args ...string) *Server {
	t.Helper()
	return Start(t, append([]string{"--appendonly", "no", "--repl-diskless-sync-delay", "0"}, args...)...)
}

// URL is what store.url takes.
func (c *Sentinel) URL() string {
	return "redis+sentinel://" + strings.Join(addrs(c.sentinels), ",") + "/cloakroom/0"
}

// Master is the master that all sentinels name. While they differ, during a
// failover, it waits for them.
func (c *Sentinel) Master() *Server {
	c.t.Helper()
	var master *Server
	await(c.t, sentinelPatience, "the sentinels name one master", func() bool {
		master = c.named()
		return master != nil
	})
	return master
}

// Replicas are the replicas that the sentinels know and do not take for dead.
func (c *Sentinel) Replicas() []*Server {
	c.t.Helper()
	master := c.Master()
	answer := c.sentinels[0].must("SENTINEL", "REPLICAS", "cloakroom")
	names, flags := pairs(answer, "name"), pairs(answer, "flags")
	var replicas []*Server
	for i, name := range names {
		if s := find(c.servers, name); s != nil && s != master && !strings.Contains(flags[i], "s_down") && !strings.Contains(flags[i], "disconnected") {
			replicas = append(replicas, s)
		}
	}
	return replicas
}

// sentinelPatience is how long sentinels may take. One that was not scheduled
// for two seconds does nothing for the next 30 (it is in "tilt mode").
const sentinelPatience = 2 * time.Minute

// WaitForOtherMaster waits until the sentinels have made another server than
// old the master, and all of them name it. It fails the test after two minutes.
func (c *Sentinel) WaitForOtherMaster(old *Server) *Server {
	c.t.Helper()
	var master *Server
	await(c.t, sentinelPatience, "the sentinels name another master than "+old.Addr(), func() bool {
		master = c.named()
		return master != nil && master != old && strings.Contains(master.ask(time.Second, "INFO", "replication"), "role:master")
	})
	return master
}

// named is the master that all sentinels name; nil where they differ.
func (c *Sentinel) named() *Server {
	var name string
	for _, s := range c.sentinels {
		addr := texts(s.ask(time.Second, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "cloakroom"))
		if len(addr) != 2 || name != "" && name != net.JoinHostPort(addr[0], addr[1]) {
			return nil
		}
		name = net.JoinHostPort(addr[0], addr[1])
	}
	return find(c.servers, name)
}

// pairs are the values of a field in an answer that lists names and values, one
// for each thing listed.
func pairs(answer, field string) []string {
	var values []string
	all := texts(answer)
	for i := 0; i+1 < len(all); i += 2 {
		if all[i] == field {
			values = append(values, all[i+1])
		}
	}
	return values
}

func addrs(servers []*Server) []string {
	var addrs []string
	for _, s := range servers {
		addrs = append(addrs, s.Addr())
	}
	return addrs
}

func find(servers []*Server, addr string) *Server {
	for _, s := range servers {
		if s.Addr() == addr {
			return s
		}
	}
	return nil
}
