package redistest

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// Cluster is a Redis Cluster of three masters with a replica each. A node that
// does not respond for 1.5 seconds has failed. Nothing is saved: a node that
// was killed restarts without data, but in its place in the cluster.
type Cluster struct {
	t     testing.TB
	nodes []*Server // the first three were masters at the start
}

// layout maps the address of each master to its slots, as CLUSTER NODES writes
// them ("0-5460 5462"). Masters without slots and failed ones are not in it.
type layout map[string]string

// StartCluster starts the six nodes. It returns when all agree on the slots and
// the replicas have the data of their masters.
func StartCluster(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	bus := make([]string, 6)
	for i := range bus {
		c.nodes = append(c.nodes, start(t, func(s *Server, port string) {
			bus[i] = testenv.FreePort(t)
			s.args = append(listen(t, "--port", port),
				"--appendonly", "no", "--repl-diskless-sync-delay", "0",
				"--cluster-enabled", "yes", "--cluster-port", bus[i], "--cluster-node-timeout", "1500")
		}))
	}
	for i, slots := range [][2]string{{"0", "5460"}, {"5461", "10922"}, {"10923", "16383"}} {
		c.nodes[i].must("CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1])
	}
	for i, node := range c.nodes { // before they know other nodes
		node.must("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
	}
	// Every node meets every other one. Gossip would do, but takes seconds.
	for i, node := range c.nodes {
		for j := i + 1; j < len(c.nodes); j++ {
			_, port, _ := net.SplitHostPort(c.nodes[j].Addr())
			node.must("CLUSTER", "MEET", "127.0.0.1", port, bus[j])
		}
	}
	const limit = 20 * time.Second
	for i, replica := range c.nodes[3:] {
		id := text(c.nodes[i].must("CLUSTER", "MYID"))
		await(t, limit, "a replica knows its master", func() bool {
			return replica.ask(time.Second, "CLUSTER", "REPLICATE", id) == "+OK"
		})
	}
	await(t, limit, "the cluster is whole", func() bool {
		for i, node := range c.nodes {
			info, nodes := node.ask(time.Second, "CLUSTER", "INFO"), node.ask(time.Second, "CLUSTER", "NODES")
			if !strings.Contains(info, "cluster_state:ok\r\n") ||
				!strings.Contains(info, "cluster_known_nodes:6\r\n") ||
				!strings.Contains(info, "cluster_slots_ok:16384\r\n") ||
				strings.Contains(nodes, "handshake") || strings.Contains(nodes, "fail") ||
				strings.Count(nodes, "slave ") != 3 {
				return false
			}
			if i >= 3 && !strings.Contains(node.ask(time.Second, "INFO", "replication"), "master_link_status:up\r\n") {
				return false
			}
		}
		return c.agreed() != nil
	})
	return c
}

// URL returns the URL for tokenstore.RedisConfig.
func (c *Cluster) URL() string { return "redis+cluster://" + strings.Join(addrs(c.nodes), ",") }

// Nodes returns all six nodes.
func (c *Cluster) Nodes() []*Server { return c.nodes }

// Masters returns the nodes that have slots. It waits until all nodes that
// respond agree, after a failover.
func (c *Cluster) Masters() []*Server {
	c.t.Helper()
	l := c.settled()
	var masters []*Server
	for _, node := range c.nodes {
		if l[node.Addr()] != "" {
			masters = append(masters, node)
		}
	}
	return masters
}

// MasterOf returns the node that has the key's slot. It waits as Masters does.
func (c *Cluster) MasterOf(key string) *Server {
	c.t.Helper()
	slot := c.slot(key)
	master := find(c.nodes, c.settled().owner(slot))
	if master == nil {
		c.t.Fatalf("no node has slot %d", slot)
	}
	return master
}

// MoveSlotOf moves the key's slot, with all keys in it, to another master. It
// returns when all nodes know.
func (c *Cluster) MoveSlotOf(key string, to *Server) {
	c.t.Helper()
	from := c.MasterOf(key)
	if from == to {
		return
	}
	slot := strconv.Itoa(c.slot(key))
	fromID, toID := text(from.must("CLUSTER", "MYID")), text(to.must("CLUSTER", "MYID"))
	host, port, _ := net.SplitHostPort(to.Addr())
	to.must("CLUSTER", "SETSLOT", slot, "IMPORTING", fromID)
	from.must("CLUSTER", "SETSLOT", slot, "MIGRATING", toID)
	for {
		// A slot in migration accepts no new keys, so this ends.
		keys := texts(from.must("CLUSTER", "GETKEYSINSLOT", slot, "100"))
		if len(keys) == 0 {
			break
		}
		from.must(append([]string{"MIGRATE", host, port, "", "0", "5000", "REPLACE", "KEYS"}, keys...)...)
	}
	// The new owner comes first. Otherwise the slot would have no owner for a
	// moment.
	to.must("CLUSTER", "SETSLOT", slot, "NODE", toID)
	from.must("CLUSTER", "SETSLOT", slot, "NODE", toID)
	await(c.t, 30*time.Second, "all nodes know where slot "+slot+" is", func() bool {
		l := c.agreed()
		return l != nil && l.owner(c.slot(key)) == to.Addr()
	})
}

// WaitForOtherMaster returns the new master of the key's slot. It waits until
// that is not old, all nodes that respond know it, and the cluster accepts
// commands. It fails the test after 30 seconds.
func (c *Cluster) WaitForOtherMaster(key string, old *Server) *Server {
	c.t.Helper()
	slot := c.slot(key, old)
	var master *Server
	await(c.t, 30*time.Second, fmt.Sprintf("another node than %s has slot %d", old.Addr(), slot), func() bool {
		for _, node := range c.nodes {
			if node != old && strings.Contains(node.ask(time.Second, "CLUSTER", "INFO"), "cluster_state:fail") {
				return false
			}
		}
		master = find(c.nodes, c.agreed(old).owner(slot))
		return master != nil && master != old
	})
	return master
}

// slot returns the slot of a key. Some nodes are not asked: they may be frozen.
func (c *Cluster) slot(key string, without ...*Server) int {
	c.t.Helper()
	for _, node := range c.nodes {
		if slices.Contains(without, node) {
			continue
		}
		if slot, err := strconv.Atoi(text(node.ask(time.Second, "CLUSTER", "KEYSLOT", key))); err == nil {
			return slot
		}
	}
	c.t.Fatal("no node of the cluster responds")
	return 0
}

// settled waits until all nodes agree on the layout.
func (c *Cluster) settled() layout {
	c.t.Helper()
	var l layout
	await(c.t, 30*time.Second, "the nodes agree on the slots", func() bool {
		l = c.agreed()
		return l != nil
	})
	return l
}

// agreed returns the layout on which all nodes that respond agree. It returns
// nil if they do not, or if fewer than four respond. Some nodes are not asked.
func (c *Cluster) agreed(without ...*Server) layout {
	var agreed layout
	responses := 0
	for _, node := range c.nodes {
		if slices.Contains(without, node) {
			continue
		}
		l := parseNodes(text(node.ask(time.Second, "CLUSTER", "NODES")))
		if len(l) == 0 {
			continue
		}
		if responses++; responses > 1 && !maps.Equal(l, agreed) {
			return nil
		}
		agreed = l
	}
	if responses < 4 {
		return nil
	}
	return agreed
}

// parseNodes parses CLUSTER NODES: id, address@bus, flags, its master, two
// times, epoch, link, and the slots. Slots in brackets are in migration.
func parseNodes(nodes string) layout {
	l := layout{}
	for line := range strings.Lines(nodes) {
		f := strings.Fields(line)
		if len(f) < 9 {
			continue
		}
		flags := strings.Split(f[2], ",")
		if !slices.Contains(flags, "master") || slices.Contains(flags, "fail") {
			continue
		}
		addr, _, _ := strings.Cut(f[1], "@")
		if slots := slices.DeleteFunc(f[8:], func(s string) bool { return s[0] == '[' }); len(slots) > 0 {
			l[addr] = strings.Join(slots, " ")
		}
	}
	return l
}

// owner returns the address of the master that has the slot, or "".
func (l layout) owner(slot int) string {
	for addr, slots := range l {
		for _, s := range strings.Fields(slots) {
			first, last, isRange := strings.Cut(s, "-")
			if !isRange {
				last = first
			}
			from, _ := strconv.Atoi(first)
			to, _ := strconv.Atoi(last)
			if from <= slot && slot <= to {
				return addr
			}
		}
	}
	return ""
}
