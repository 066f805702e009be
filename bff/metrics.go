package bff

import (
	"cmp"
	"crypto/tls"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/session"
)

// metrics are what a Server counts for Prometheus. They survive a Reload. What
// other parts of the Server know already is read at a scrape.
type metrics struct {
	requests *prometheus.CounterVec   // of route and class
	duration *prometheus.HistogramVec // of route and class
	upstream *prometheus.HistogramVec // of route and upstream
	added    *prometheus.HistogramVec // of route
	aborted  *prometheus.CounterVec   // of route

	logins        *prometheus.CounterVec // of result
	loginsRefused *prometheus.CounterVec // of reason
	started       prometheus.Counter     // sessions
	ended         *prometheus.CounterVec // sessions; of reason
	returned      *prometheus.CounterVec // cookies of ended sessions; of reason
	refreshes     *prometheus.CounterVec // of result
	csrfRefused   prometheus.Counter
	logoutRefused *prometheus.CounterVec // of reason
	adminRefused  prometheus.Counter
	wait          prometheus.Histogram     // of requests, for a refresh
	provider      *prometheus.HistogramVec // of endpoint and class
	store         storeMetrics

	frontend, unrouted *routeMetrics

	mu           sync.Mutex        // guards all below
	apps         map[*app]struct{} // the configuration in force, and those before whose requests have not ended
	hits, misses uint64            // in the caches of those that are not in apps any more
}

// Values of the label route for requests that belong to no route. An endpoint
// under the prefix has its path. Paths begin with a slash.
const (
	// routeFrontend is for what belongs to the app itself.
	routeFrontend = "app"
	// routeNone is for requests that were refused before a route was chosen:
	// with another host, an ambiguous path, or TRACE.
	routeNone = "none"
)

// Upper bounds of the histograms, in seconds. Native histograms would cost four
// times as much for each request.
var (
	durationBuckets = []float64{.005, .02, .05, .1, .25, .5, 1, 2.5, 10}
	addedBuckets    = []float64{.0005, .001, .0025, .005, .01, .05, .25, 1, 5}
)

func newMetrics() *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cloakroom_requests_total",
			Help: "Requests that ended. A client that left before the response counts as 4xx, " +
				"a switch to a WebSocket as 2xx.",
		}, []string{"route", "class"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cloakroom_request_duration_seconds",
			Help: "Time from the header of a request to the end of its response, " +
				"without event streams and WebSockets.",
			Buckets: durationBuckets,
		}, []string{"route", "class"}),
		upstream: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cloakroom_upstream_duration_seconds",
			Help: "Time from sending a request to the upstream to the header of its response, or to the " +
				"failure, retries included.",
			Buckets: durationBuckets,
		}, []string{"route", "upstream"}),
		added: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cloakroom_added_duration_seconds",
			Help: "Time that Cloakroom added before the header of an upstream's response, the session store " +
				"included: without the upstream, and without waiting for a token refresh.",
			Buckets: addedBuckets,
		}, []string{"route"}),
		aborted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cloakroom_responses_aborted_total",
			Help: "Responses that ended too early, because of the upstream or a body that was too slow. " +
				"In cloakroom_requests_total they have the class of their status.",
		}, []string{"route"}),
		logins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cloakroom_logins_total",
			Help: "Steps of logins: started (a browser was sent to the provider), returned (it came back), " +
				"completed (a session began), refused, and not_signed_in (a silent login found no session at " +
				"the provider).",
		}, []string{"result"}),
		loginsRefused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cloakroom_logins_refused_total",
			Help: "Logins that were not started or did not succeed, by the code of the error.",
		}, []string{"reason"}),
		started: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cloakroom_sessions_started_total",
			Help: "Sessions that began on this replica.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cloakroom_sessions_ended_total",
			Help: "Ends of sessions, each counted on one replica. One that expired (idle, lifetime) is counted " +
				"when its cookie comes back, so many of these are never counted.",
		}, []string{"reason"}),
		returned: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cloakroom_ended_sessions_returned_total",
			Help: "Ended sessions whose cookie came back to this replica, by the reason of the end.",
		}, []string{"reason"}),
		refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cloakroom_refreshes_total",
			Help: "Token refreshes: success, error (tried again), outage (the provider fails for all sessions), " +
				"user_required (the user has to sign in again), and refused (the session has ended).",
		}, []string{"result"}),
		csrfRefused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cloakroom_csrf_refused_total",
			Help: "Requests that did not prove that they come from a page of this origin.",
		}),
		logoutRefused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cloakroom_logouts_refused_total",
			Help: "Logout requests of the provider that were not accepted, by the code of the error.",
		}, []string{"reason"}),
		adminRefused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cloakroom_admin_refused_total",
			Help: "Requests to the admin listener without a valid token, or from elsewhere.",
		}),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "cloakroom_refresh_wait_duration_seconds",
			Help:    "Time that requests waited for a token refresh. Most requests wait for none.",
			Buckets: durationBuckets,
		}),
		provider: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cloakroom_provider_request_duration_seconds",
			Help: "Time from sending a request to the provider to the header of its response, or to the failure. " +
				"The endpoint is token, discovery, jwks, userinfo, revocation, pushed_authorization_request or " +
				"provider (any other); the class is none without a response.",
			Buckets: durationBuckets,
		}, []string{"endpoint", "class"}),
		store: newStoreMetrics(),
		apps:  make(map[*app]struct{}),
	}
	m.initialize()
	m.frontend, m.unrouted = m.forRoute(routeFrontend, nil), m.forRoute(routeNone, nil)
	return m
}

// collectors returns those that count by themselves.
func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.requests, m.duration, m.upstream, m.added, m.aborted,
		m.logins, m.loginsRefused, m.started, m.ended, m.returned, m.refreshes,
		m.csrfRefused, m.logoutRefused, m.adminRefused, m.wait, m.provider, m.store.duration, m.store.errors,
	}
}

// Values of the label result.
const (
	loginStarted     = "started"
	loginReturned    = "returned"
	loginCompleted   = "completed"
	loginRefused     = "refused"
	loginNotSignedIn = "not_signed_in"

	refreshSuccess = "success"
	refreshRefused = "refused"
)

// initialize makes counters begin with 0, so that the first event is a rise.
func (m *metrics) initialize() {
	for _, result := range []string{loginStarted, loginReturned, loginCompleted, loginRefused, loginNotSignedIn} {
		m.logins.WithLabelValues(result)
	}
	for _, result := range []string{refreshSuccess, "error", "outage", "user_required", refreshRefused} {
		m.refreshes.WithLabelValues(result)
	}
	for _, reason := range []session.Reason{
		session.ReasonLogout, session.ReasonBackchannel, session.ReasonFrontchannel, session.ReasonIdle,
		session.ReasonLifetime, session.ReasonRefused, session.ReasonReplaced, session.ReasonLimit,
		session.ReasonRevoked, session.ReasonKeyRemoved,
	} {
		m.ended.WithLabelValues(string(reason))
		m.returned.WithLabelValues(string(reason))
	}
	for _, p := range []*problem.Problem{
		problem.BadLoginParameter, problem.BadCallback, problem.LoginCancelled, problem.LoginRefused,
		problem.LoginInvalid, problem.LoginTooWeak, problem.SignedOutMeanwhile, problem.OtherAccount,
		problem.ProviderUnavailable, problem.StoreUnavailable, problem.TooManyRequests,
	} {
		m.loginsRefused.WithLabelValues(p.Code)
	}
	m.logoutRefused.WithLabelValues(problem.BadLogoutToken.Code)
	for _, endpoint := range []string{"discovery", "jwks", "token"} {
		m.provider.WithLabelValues(endpoint, classes[0])
	}
}

// count counts an event.
func (m *metrics) count(e Event) {
	switch e.Kind {
	case LoginStarted:
		m.logins.WithLabelValues(loginStarted).Inc()
	case LoginReturned:
		m.logins.WithLabelValues(loginReturned).Inc()
	case LoginRefused:
		if isSilentRefusal(e.Reason) {
			m.logins.WithLabelValues(loginNotSignedIn).Inc()
			return
		}
		m.logins.WithLabelValues(loginRefused).Inc()
		m.loginsRefused.WithLabelValues(e.Reason).Inc()
	case EventKind(session.SessionStarted):
		m.logins.WithLabelValues(loginCompleted).Inc()
		m.started.Inc()
	case EventKind(session.SessionEnded):
		m.ended.WithLabelValues(e.Reason).Inc()
		if e.Reason == string(session.ReasonRefused) {
			m.refreshes.WithLabelValues(refreshRefused).Inc()
		}
	case EventKind(session.SessionReturned):
		m.returned.WithLabelValues(e.Reason).Inc()
	case EventKind(session.SessionRefreshed):
		m.refreshes.WithLabelValues(refreshSuccess).Inc()
	case EventKind(session.RefreshFailed):
		m.refreshes.WithLabelValues(e.Reason).Inc()
	case CSRFRefused:
		m.csrfRefused.Inc()
	case LogoutRefused:
		m.logoutRefused.WithLabelValues(e.Reason).Inc()
	case AdminRefused:
		m.adminRefused.Inc()
	}
}

// classes are the values of the label class.
var classes = [...]string{"2xx", "3xx", "4xx", "5xx"}

// countProviderRequest is oidc.Config.Observe.
func (m *metrics) countProviderRequest(endpoint string, status int, took time.Duration) {
	class := "none"
	if status != 0 {
		class = classes[classOf(status)]
	}
	m.provider.WithLabelValues(endpoint, class).Observe(took.Seconds())
}

// classOf returns the index in classes of a status. A switch of protocols is a
// success.
func classOf(status int) int { return min(max(status/100-2, 0), len(classes)-1) }

// routeMetrics are the metrics of a route, or of requests that belong to none.
type routeMetrics struct {
	label     string
	requests  [len(classes)]prometheus.Counter
	durations [len(classes)]atomic.Pointer[prometheus.Observer] // nil: no request had this class yet
	upstreams []prometheus.Observer                             // :: index in Route.Upstream
	added     prometheus.Observer                               // nil: the route has no upstream
	aborted   prometheus.Counter

	duration *prometheus.HistogramVec
}

// forRoute returns the metrics of a route with servers, so that a request looks
// up no label.
func (m *metrics) forRoute(label string, servers []string) *routeMetrics {
	r := &routeMetrics{label: label, duration: m.duration, aborted: m.aborted.WithLabelValues(label)}
	for i, class := range classes {
		r.requests[i] = m.requests.WithLabelValues(label, class)
	}
	for _, server := range servers {
		r.upstreams = append(r.upstreams, m.upstream.WithLabelValues(label, server))
		r.added = m.added.WithLabelValues(label)
	}
	return r
}

// durationOf returns the histogram of a class. Most routes have requests of two
// or three classes, and a histogram has many series.
func (r *routeMetrics) durationOf(class int) prometheus.Observer {
	if o := r.durations[class].Load(); o != nil {
		return *o
	}
	o := r.duration.WithLabelValues(r.label, classes[class])
	r.durations[class].Store(&o)
	return o
}

// countRequest counts a request that has ended. panicked means that there is no
// status because the handler failed.
func (w *response) countRequest(panicked bool) {
	status := w.status
	if w.exchange.Status != 0 {
		status = w.exchange.Status
	} else if status == 0 && panicked {
		status = http.StatusInternalServerError
	}
	class := classOf(status)
	took := time.Since(w.began)
	w.metrics.requests[class].Inc()
	if !w.exchange.Stream {
		w.metrics.durationOf(class).Observe(took.Seconds())
	}
	w.server.hour.countRequest(class, took, w.exchange.Upstream != "" && !w.exchange.Stream)
	if w.exchange.Upstream != "" {
		w.metrics.upstreams[w.exchange.Server].Observe(w.exchange.UpstreamTime.Seconds())
	}
	if w.waited > 0 {
		w.server.metrics.wait.Observe(w.waited.Seconds())
	}
	if w.exchange.Err != nil || w.slow.Load() {
		w.metrics.aborted.Inc()
	}
}

// attach makes a the app of a server, which is another one after Reload than in
// New, and looks up its metrics.
func (a *app) attach(s *Server) {
	a.server = s
	for _, route := range a.routes {
		var servers []string
		if route.proxy != nil {
			servers = route.proxy.Servers()
		}
		route.metrics = s.metrics.forRoute(route.Path, servers)
	}
	if a.files != nil {
		a.files.metrics = s.metrics.forRoute(routeFrontend, a.files.proxy.Servers())
	}
	a.endpointMetrics = make(map[string]*routeMetrics)
	for path := range a.table {
		a.endpointMetrics[path] = s.metrics.forRoute(path, nil)
	}
	a.unknownEndpoint = s.metrics.forRoute(a.prefix+"/", nil)
	s.metrics.add(a)
}

// add has read count a, until remove.
func (m *metrics) add(a *app) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.apps[a] = struct{}{}
}

// remove ends what add began. Counters keep what a has counted.
func (m *metrics) remove(a *app) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.apps, a)
	stats := a.sessions.Stats()
	m.hits += stats.CacheHits
	m.misses += stats.CacheMisses
}

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
			"a client (client), those that the provider and the upstreams showed last (provider, upstream).",
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
		unreportedDesc, certificateDesc,
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
	for cert, expiry := range s.certificates(a) {
		gauge(certificateDesc, time.Until(expiry).Seconds(), cert.kind, cert.name)
	}
}

// certificateLabels are the labels of a certificate.
type certificateLabels struct{ kind, name string }

// certificates returns when the certificates that are known expire.
func (s *Server) certificates(a *app) map[certificateLabels]time.Time {
	all := make(map[certificateLabels]time.Time)
	add := func(kind, name string, expiry time.Time) {
		labels := certificateLabels{kind, name}
		if before, ok := all[labels]; !expiry.IsZero() && (!ok || expiry.Before(before)) {
			all[labels] = expiry
		}
	}
	addOwn := func(kind string, cert *tls.Certificate) {
		if cert != nil && cert.Leaf != nil {
			name := cert.Leaf.Subject.CommonName
			if len(cert.Leaf.DNSNames) > 0 {
				name = cert.Leaf.DNSNames[0]
			}
			add(kind, name, cert.Leaf.NotAfter)
		}
	}
	if s.tls != nil {
		addOwn("server", served(s.tls))
	}
	addOwn("client", a.provider.Config().ClientCertificate)
	_, issuer, _ := strings.Cut(a.provider.IssuerOrigin(), "://")
	for host, expiry := range a.provider.CertificateExpiry() {
		add("provider", cmp.Or(host, issuer), expiry)
	}
	for _, route := range a.proxied() {
		if route.TLS != nil {
			for i := range route.TLS.Certificates {
				addOwn("client", &route.TLS.Certificates[i])
			}
		}
		for i, server := range route.proxy.Servers() {
			add("upstream", server, route.proxy.CertificateExpiry(i))
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
