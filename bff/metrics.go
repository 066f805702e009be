package bff

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

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

func newCounter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func newCounters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func newHistograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
}

func newMetrics() *metrics {
	m := &metrics{
		requests: newCounters("cloakroom_requests_total",
			"Requests that ended. A client that left before the response counts as 4xx, "+
				"a switch to a WebSocket as 2xx.", "route", "class"),
		duration: newHistograms("cloakroom_request_duration_seconds",
			"Time from the header of a request to the end of its response, "+
				"without event streams and WebSockets.", durationBuckets, "route", "class"),
		upstream: newHistograms("cloakroom_upstream_duration_seconds",
			"Time from sending a request to the upstream to the header of its response, or to the "+
				"failure, retries included.", durationBuckets, "route", "upstream"),
		added: newHistograms("cloakroom_added_duration_seconds",
			"Time that Cloakroom added before the header of an upstream's response, the session store "+
				"included: without the upstream, and without waiting for a token refresh.", addedBuckets, "route"),
		aborted: newCounters("cloakroom_responses_aborted_total",
			"Responses that ended too early, because of the upstream or a body that was too slow. "+
				"In cloakroom_requests_total they have the class of their status.", "route"),
		logins: newCounters("cloakroom_logins_total",
			"Steps of logins: started (a browser was sent to the provider), returned (it came back), "+
				"completed (a session began), refused, and not_signed_in (a silent login found no session at "+
				"the provider).", "result"),
		loginsRefused: newCounters("cloakroom_logins_refused_total",
			"Logins that were not started or did not succeed, by the code of the error.", "reason"),
		started: newCounter("cloakroom_sessions_started_total",
			"Sessions that began on this replica."),
		ended: newCounters("cloakroom_sessions_ended_total",
			"Ends of sessions, each counted on one replica. One that expired (idle, lifetime) is counted "+
				"when its cookie comes back, so many of these are never counted.", "reason"),
		returned: newCounters("cloakroom_ended_sessions_returned_total",
			"Ended sessions whose cookie came back to this replica, by the reason of the end.", "reason"),
		refreshes: newCounters("cloakroom_refreshes_total",
			"Token refreshes: success, error (tried again), outage (the provider fails for all sessions), "+
				"user_required (the user has to sign in again), and refused (the session has ended).", "result"),
		csrfRefused: newCounter("cloakroom_csrf_refused_total",
			"Requests that did not prove that they come from a page of this origin."),
		logoutRefused: newCounters("cloakroom_logouts_refused_total",
			"Logout requests of the provider that were not accepted, by the code of the error.", "reason"),
		adminRefused: newCounter("cloakroom_admin_refused_total",
			"Requests to the admin listener without a valid token, or from elsewhere."),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "cloakroom_refresh_wait_duration_seconds",
			Help:    "Time that requests waited for a token refresh. Most requests wait for none.",
			Buckets: durationBuckets,
		}),
		provider: newHistograms("cloakroom_provider_request_duration_seconds",
			"Time from sending a request to the provider to the header of its response, or to the failure. "+
				"The endpoint is token, discovery, jwks, userinfo, revocation, pushed_authorization_request or "+
				"provider (any other); the class is none without a response.", durationBuckets, "endpoint", "class"),
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

// countRequest counts a request that has ended at a time. panicked means that
// there is no status because the handler failed.
func (w *response) countRequest(ended time.Time, panicked bool) {
	status := w.status
	if w.exchange.Status != 0 {
		status = w.exchange.Status
	} else if status == 0 && panicked {
		status = http.StatusInternalServerError
	}
	class := classOf(status)
	took := ended.Sub(w.began)
	w.metrics.requests[class].Inc()
	if !w.exchange.Stream {
		w.metrics.durationOf(class).Observe(took.Seconds())
	}
	w.server.hour.countRequest(ended, class, took, w.exchange.Upstream != "" && !w.exchange.Stream)
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
