package proxy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
)

// BenchmarkSelectAddress measures the choice of an address for a request, for a
// name with some addresses.
//
//	go test ./bff/proxy -run '^$' -bench Select
func BenchmarkSelectAddress(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("%d addresses", n), func(b *testing.B) {
			u := newNamedSet(b, n)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if u.selectAddress(nil) == nil {
						b.Error("no address")
					}
				}
			})
		})
	}
}

// newNamedSet returns the servers of an upstream whose name has n addresses.
func newNamedSet(t testing.TB, n int) *serverSet {
	t.Helper()
	u, err := newServerSet(Upstream{URLs: []string{"http://orders.internal"}}, new(Group))
	if err != nil {
		t.Fatal(err)
	}
	var ips []netip.Addr
	for i := range n {
		var ip [4]byte
		binary.BigEndian.PutUint32(ip[:], 10<<24+uint32(i))
		ips = append(ips, netip.AddrFrom4(ip))
	}
	u.servers[0].replace(ips)
	u.servers[0].resolveAt.Store(1 << 62)
	return u
}
