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

// Sentinel is a Redis master named cloakroom with two replicas and three
// sentinels. The master is down when two sentinels agree. To each of them it is
// down if it does not respond for a second. Nothing is saved: a server that was
// killed restarts without data.
type Sentinel struct {
	t         testing.TB
	servers   []*Server // the first was the master at the start
	sentinels []*Server
}

// StartSentinel starts the six servers. It returns when every sentinel knows
// both replicas and both other sentinels.
func StartSentinel(t testing.TB) *Sentinel {
	t.Helper()
	c := &Sentinel{t: t}
	master := startUnsaved(t)
	_, port, _ := net.SplitHostPort(master.Addr())
	replica := []string{"--replicaof", "127.0.0.1", port}
	c.servers = []*Server{master, startUnsaved(t, replica...), startUnsaved(t, replica...)}
	// Sentinels find the replicas in the master's INFO, so these start first.
	await(t, 15*time.Second, "both replicas have the master's data", func() bool {
		return strings.Count(master.ask(time.Second, "INFO", "replication"), "state=online") == 2
	})
	for range 3 {
		s := start(t, func(s *Server, ownPort string) {
			dir := t.TempDir()
			conf := filepath.Join(dir, "sentinel.conf") // which a sentinel rewrites
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
		// Short intervals make the test fast. With a long TILT-TRIGGER a pause
		// on a busy machine does not stop a sentinel for half a minute.
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

// startUnsaved starts a redis-server that saves nothing and sends its data to a
// new replica without a delay.
func startUnsaved(t testing.TB, args ...string) *Server {
	t.Helper()
	return Start(t, append([]string{"--appendonly", "no", "--repl-diskless-sync-delay", "0"}, args...)...)
}

// URL returns the URL for tokenstore.RedisConfig.
func (c *Sentinel) URL() string {
	return "redis+sentinel://" + strings.Join(addrs(c.sentinels), ",") + "/cloakroom/0"
}

// Master returns the master. It waits until all sentinels agree, after a
// failover.
func (c *Sentinel) Master() *Server {
	c.t.Helper()
	var master *Server
	await(c.t, sentinelTimeout, "the sentinels name one master", func() bool {
		master = c.named()
		return master != nil
	})
	return master
}

// Replicas returns the replicas that are up according to a sentinel.
func (c *Sentinel) Replicas() []*Server {
	c.t.Helper()
	master := c.Master()
	response := c.sentinels[0].must("SENTINEL", "REPLICAS", "cloakroom")
	names, flags := pairs(response, "name"), pairs(response, "flags")
	var replicas []*Server
	for i, name := range names {
		if s := find(c.servers, name); s != nil && s != master &&
			!strings.Contains(flags[i], "s_down") && !strings.Contains(flags[i], "disconnected") {
			replicas = append(replicas, s)
		}
	}
	return replicas
}

// sentinelTimeout is how long a failover may take. A sentinel that was not
// scheduled for two seconds does nothing for the next 30 (TILT mode).
const sentinelTimeout = 2 * time.Minute

// WaitForOtherMaster returns the new master. It waits until that is not old and
// all sentinels agree. It fails the test after two minutes.
func (c *Sentinel) WaitForOtherMaster(old *Server) *Server {
	c.t.Helper()
	var master *Server
	await(c.t, sentinelTimeout, "the sentinels name another master than "+old.Addr(), func() bool {
		master = c.named()
		return master != nil && master != old &&
			strings.Contains(master.ask(time.Second, "INFO", "replication"), "role:master")
	})
	return master
}

// named returns the master that all sentinels name, or nil if they differ.
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

// pairs returns the values of a field in a response that is a list of objects,
// each a list of names and values.
func pairs(response, field string) []string {
	var values []string
	all := texts(response)
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
