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

// Of many addresses only some are compared for each request.
func TestRequestsSpreadOverManyAddresses(t *testing.T) {
	t.Parallel()
	const n, each = 1000, 5
	u := newNamedSet(t, n)
	all := *u.servers[0].addresses.Load()
	for _, a := range all[:n/2] { // half of them have failed
		a.mu.Lock()
		a.markFailed(false)
		a.retryAt.Store(1 << 62)
		a.mu.Unlock()
	}
	for range n / 2 * each {
		u.selectAddress(nil).busy.Add(1)
	}
	for i, a := range all {
		if got, failed := a.busy.Load(), i < n/2; failed && got != 0 || !failed && (got < 1 || got > 2*each) {
			t.Errorf("address %d, failed %v: got %d requests, want about %d if it has not failed", i, failed, got, each)
		}
	}
	if got := u.selectAddress(all[n/2:]); got == nil || got.retryAt.Load() == 0 {
		t.Errorf("with all others tried: got %v, want one that has failed", got)
	}
	if got := u.selectAddress(all); got != nil {
		t.Errorf("with all tried: got %v, want none", got)
	}
}
