package bff

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/session"
)

// Metrics whose values are read at a scrape.
var (
	inFlightDesc = prometheus.NewDesc("cloakroom_requests_in_flight",
		"Requests in flight, event streams and WebSockets included.", nil, nil)
	streamsDesc = prometheus.NewDesc("cloakroom_streams",
		"Event streams and WebSockets that are open, those of session events included.", nil, nil)
	upstreamUpDesc = prometheus.NewDesc("cloakroom_upstream_up",
		"1 unless the last requests to all addresses of the upstream failed.", []string{"route", "upstream"}, nil)
	connectionsDesc = prometheus.NewDesc("cloakroom_connections",
		"Open connections of the public listener.", nil, nil)
	connectionsLimitDesc = prometheus.NewDesc("cloakroom_connections_limit",
		"How many connections may be open (server.limits.connections).", nil, nil)
	refusalsDesc = prometheus.NewDesc("cloakroom_refusals_total",
		"Connections and requests that were refused because of a limit, by the limit.", []string{"limit"}, nil)
	providerUpDesc = prometheus.NewDesc("cloakroom_provider_up",
		"1 if the provider was discovered, and responds to token requests.", nil, nil)
	breakerDesc = prometheus.NewDesc("cloakroom_provider_breaker_state",
		"1 for the state in which the circuit breaker of token requests is.", []string{"state"}, nil)
	invalidationDesc = prometheus.NewDesc("cloakroom_invalidation_up",
		"1 if the store announces changes by other replicas. Otherwise no cached session is used.", nil, nil)
	cacheDesc = prometheus.NewDesc("cloakroom_session_cache_requests_total",
		"Sessions that were looked up in the cache, by the result.", []string{"result"}, nil)
	refreshingDesc = prometheus.NewDesc("cloakroom_refreshes_in_flight",
		"Token refreshes in flight on this replica, those that wait for another replica included.", nil, nil)
	waitersDesc = prometheus.NewDesc("cloakroom_refresh_waiters",
		"Requests that wait for a token refresh.", nil, nil)
	cookiesDesc = prometheus.NewDesc("cloakroom_cookies_refused_total",
		"Requests with a cookie of a session or a login that was not used, by the reason.", []string{"kind"}, nil)

	unreportedDesc = prometheus.NewDesc("cloakroom_events_unreported_total",
		"Security events that were counted, but neither logged nor audited, because there were too many.", nil, nil)
	certificateDesc = prometheus.NewDesc("cloakroom_certificate_expiry_seconds",
		"Time until a certificate expires, negative afterwards: that of the public listener (server), our own as "+
			"a client (client), those that the provider, the upstreams and the session store showed last "+
			"(provider, upstream, store).",
		[]string{"certificate", "name"}, nil)
	lifetimeDesc = prometheus.NewDesc("cloakroom_certificate_lifetime_seconds",
		"Time from the beginning to the end of a certificate's validity.",
		[]string{"certificate", "name"}, nil)
)

// Describe sends the descriptions of all metrics. With Collect, it makes a
// Server a prometheus.Collector. Register it once.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range s.metrics.collectors() {
		c.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{
		inFlightDesc, streamsDesc, upstreamUpDesc, connectionsDesc, connectionsLimitDesc, refusalsDesc,
		providerUpDesc, breakerDesc, invalidationDesc, cacheDesc, refreshingDesc, waitersDesc, cookiesDesc,
		unreportedDesc, certificateDesc, lifetimeDesc,
	} {
		ch <- d
	}
}

// Collect sends all metrics. It calls neither the store nor the provider.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	for _, c := range s.metrics.collectors() {
		c.Collect(ch)
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counter := func(d *prometheus.Desc, value uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), labels...)
	}

	total := s.metrics.read()
	gauge(inFlightDesc, float64(total.requests))
	gauge(streamsDesc, float64(total.streams))
	gauge(refreshingDesc, float64(total.Refreshing))
	gauge(waitersDesc, float64(total.Waiting))
	counter(cacheDesc, total.CacheHits, "hit")
	counter(cacheDesc, total.CacheMisses, "miss")

	open, limit := s.conns.count()
	gauge(connectionsDesc, float64(open))
	gauge(connectionsLimitDesc, float64(limit))
	for _, limit := range []Refusal{
		RefusalConnections, RefusalDescriptors, RefusalWaiting, RefusalHeader, RefusalRequests, RefusalMemory,
	} {
		counter(refusalsDesc, s.Refused(limit), string(limit))
	}
	for _, state := range []session.CookieState{
		session.CookieForeign, session.CookieUnopenable, session.CookieDuplicate,
	} {
		counter(cookiesDesc, s.CookiesRefused(state), string(state))
	}

	counter(unreportedDesc, s.unreported.total.Load())

	a := s.current.Load()
	gauge(providerUpDesc, oneIf(a.provider.Status() == nil))
	for _, state := range []oidc.BreakerState{oidc.BreakerClosed, oidc.BreakerHalfOpen, oidc.BreakerOpen} {
		gauge(breakerDesc, oneIf(a.provider.Breaker() == state), string(state))
	}
	gauge(invalidationDesc, oneIf(a.sessions.CacheValid()))
	for _, route := range a.proxied() {
		for server, up := range route.upstreamsUp() {
			gauge(upstreamUpDesc, oneIf(up), route.Path, server)
		}
	}
	for labels, cert := range s.certificates(a) {
		gauge(certificateDesc, time.Until(cert.NotAfter).Seconds(), labels.kind, labels.name)
		gauge(lifetimeDesc, cert.NotAfter.Sub(cert.NotBefore).Seconds(), labels.kind, labels.name)
	}
}

// certifiedStore is a session.Store that knows the certificates of its
// connections, such as tokenstore.Redis. Of others there are no metrics.
type certifiedStore interface {
	Certificates() (servers map[string]*x509.Certificate, client *x509.Certificate)
}

// certificateLabels are the labels of a certificate.
type certificateLabels struct{ kind, name string }

// certificates returns the certificates that are known. Of those with the same
// labels it is the one that expires first.
func (s *Server) certificates(a *app) map[certificateLabels]*x509.Certificate {
	all := make(map[certificateLabels]*x509.Certificate)
	add := func(kind, name string, cert *x509.Certificate) {
		labels := certificateLabels{kind, name}
		if before := all[labels]; cert != nil && (before == nil || cert.NotAfter.Before(before.NotAfter)) {
			all[labels] = cert
		}
	}
	addLeaf := func(kind string, cert *x509.Certificate) {
		if cert != nil {
			name := cert.Subject.CommonName
			if len(cert.DNSNames) > 0 {
				name = cert.DNSNames[0]
			}
			add(kind, name, cert)
		}
	}
	addOwn := func(kind string, cert *tls.Certificate) {
		if cert != nil {
			addLeaf(kind, cert.Leaf)
		}
	}
	if s.tls != nil {
		addOwn("server", served(s.tls))
	}
	addOwn("client", a.provider.Config().ClientCertificate)
	_, issuer, _ := strings.Cut(a.provider.IssuerOrigin(), "://")
	for host, cert := range a.provider.PeerCertificates() {
		add("provider", cmp.Or(host, issuer), cert)
	}
	if store, ok := a.store.(*measuredStore).Store.(certifiedStore); ok {
		servers, client := store.Certificates()
		for host, cert := range servers {
			add("store", host, cert)
		}
		addLeaf("client", client)
	}
	for _, route := range a.proxied() {
		if route.TLS != nil {
			for i := range route.TLS.Certificates {
				addOwn("client", &route.TLS.Certificates[i])
			}
		}
		for i, server := range route.proxy.Servers() {
			add("upstream", server, route.proxy.PeerCertificate(i))
		}
	}
	return all
}

// totals are the sums over all configurations that have requests.
type totals struct {
	session.Stats
	requests int64
	streams  int
}

func (m *metrics) read() totals {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := totals{Stats: session.Stats{CacheHits: m.hits, CacheMisses: m.misses}}
	for a := range m.apps {
		stats := a.sessions.Stats()
		t.CacheHits += stats.CacheHits
		t.CacheMisses += stats.CacheMisses
		t.Refreshing += stats.Refreshing
		t.Waiting += stats.Waiting
		t.requests += a.requests.Load()
		t.streams += a.upstreams.Streams() + a.streams.count()
	}
	return t
}

// upstreamsUp returns for each server of the route whether one of its addresses
// has not failed.
func (route *route) upstreamsUp() map[string]bool {
	up := make(map[string]bool)
	known := route.proxy.Status()
	for i, server := range route.proxy.Servers() {
		ofServer, failed := 0, 0
		for _, status := range known {
			if status.Server == i {
				ofServer++
				if status.Failed {
					failed++
				}
			}
		}
		up[server] = up[server] || failed < max(ofServer, 1)
	}
	return up
}

func oneIf(condition bool) float64 {
	if condition {
		return 1
	}
	return 0
}
