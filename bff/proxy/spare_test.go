package proxy

import (
	"net/netip"
	"testing"
)

// Which addresses are spare is decided by what the name leads to now.
func TestTheFamilyInUseFollowsTheName(t *testing.T) {
	t.Parallel()
	u, err := newServerSet(Upstream{URLs: []string{"http://orders.internal"}}, new(Group))
	if err != nil {
		t.Fatal(err)
	}
	ips := func(texts ...string) (all []netip.Addr) {
		for _, text := range texts {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}
	s := u.servers[0]
	for _, step := range []struct {
		ips  []netip.Addr
		used int
	}{
		{ips("2001:db8::1", "192.0.2.1"), 1},
		{ips("192.0.2.1", "192.0.2.2"), 2}, // without IPv6 any more
		{ips("2001:db8::1", "192.0.2.1", "192.0.2.2"), 1},
		{ips("192.0.2.1", "192.0.2.2", "2001:db8::1"), 2}, // sorted otherwise
	} {
		s.replace(step.ips)
		s.resolveAt.Store(1 << 62)
		used := make(map[*address]bool)
		for range 100 {
			used[u.selectAddress(nil)] = true
		}
		if len(used) != step.used {
			t.Errorf("%v: %d addresses are used, want %d", step.ips, len(used), step.used)
		}
	}
}
