package bff

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// resolveEvery is how long the addresses of a name are used before they are
	// looked up again. Whether its records live longer the resolver does not tell.
	resolveEvery   = 5 * time.Second
	resolveTimeout = 5 * time.Second
)

// current returns the addresses of a server, the ones of its name as far as that
// has been resolved. If that was a while ago it is done again, which no request
// waits for.
func (s *server) current(now time.Time) []*address {
	if due := s.resolveAt.Load(); s.name != "" && now.UnixNano() >= due {
		if s.resolveAt.CompareAndSwap(due, now.Add(resolveEvery).UnixNano()) {
			go s.resolve(context.Background()) // ends after resolveTimeout
		}
	}
	if list := s.addresses.Load(); list != nil {
		return *list
	}
	return nil
}

// resolve looks the name up and replaces the addresses. If that fails they stay:
// an outage of the name service is none of the server. Callers share a look-up
// that is in progress.
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
	ips, err := s.resolver.LookupNetIP(ctx, "ip", s.name)
	if strings.EqualFold(s.name, "localhost") { // it is both, whatever the system knows (RFC 6761 6.3)
		ips, err = append(ips, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()), nil
	}
	if err != nil {
		return &dialError{err}
	}
	s.resolved = time.Now()
	s.resolveAt.Store(s.resolved.Add(resolveEvery).UnixNano())
	s.replace(ips)
	return nil
}

// replace puts the addresses of ips in place of those before. What is the same
// keeps its connections; what is gone finishes what it has begun. The resolver
// has sorted ips (RFC 6724): those of another family than the first are spare.
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
