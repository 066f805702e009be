package proxy

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/monotonic"
)

const (
	// resolveEvery is how long the addresses of a name are used before they are
	// looked up again. The resolver does not return the TTL of its records.
	resolveEvery   = 5 * time.Second
	resolveTimeout = 5 * time.Second
)

// current returns the addresses of a server; none if its name was not resolved
// yet. If the last look-up was resolveEvery ago, it starts another one in the
// background.
func (s *server) current(now int64) []*address {
	if due := s.resolveAt.Load(); s.name != "" && now >= due {
		if s.resolveAt.CompareAndSwap(due, now+int64(resolveEvery)) {
			go s.resolve(context.Background()) // ends after resolveTimeout
		}
	}
	if list := s.addresses.Load(); list != nil {
		return *list
	}
	return nil
}

// resolve looks up the name and replaces the addresses. They stay if that
// fails: an outage of the name service is no outage of the server. Callers
// share a look-up that is in progress.
func (s *server) resolve(ctx context.Context) error {
	select {
	case s.resolving <- struct{}{}:
		defer func() { <-s.resolving }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if time.Since(s.resolved) < time.Second {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	ips, err := s.group.Resolver.LookupNetIP(ctx, "ip", s.name)
	if strings.EqualFold(s.name, "localhost") { // it is both, whatever the system knows (RFC 6761 6.3)
		ips, err = append(ips, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()), nil
	}
	if err != nil {
		return &dialError{err}
	}
	s.resolved = time.Now()
	s.resolveAt.Store(monotonic.Now() + int64(resolveEvery))
	s.replace(ips)
	return nil
}

// replace replaces the addresses by those of ips. An address that stays keeps
// its connections; one that is gone finishes its requests. The resolver has
// sorted ips (RFC 6724): those of another family than the first are spare.
func (s *server) replace(ips []netip.Addr) {
	var before, after []*address
	if list := s.addresses.Load(); list != nil {
		before = *list
	}
	for _, ip := range ips {
		ip = ip.Unmap()
		same := func(a *address) bool { return a.ip == ip }
		if slices.ContainsFunc(after, same) {
			continue
		}
		var a *address
		if i := slices.IndexFunc(before, same); i >= 0 {
			a = before[i]
		} else {
			a = s.newAddress(netip.AddrPortFrom(ip, s.port).String())
			a.ip = ip
		}
		a.spare.Store(ip.Is4() != ips[0].Unmap().Is4())
		after = append(after, a)
	}
	if len(after) == 0 {
		return
	}
	s.addresses.Store(&after)
	for _, a := range before {
		if !slices.Contains(after, a) {
			a.retired.Store(true)
			a.close()
		}
	}
}
