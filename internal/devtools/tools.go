// Package devtools is the inspector of a broker that runs on a developer's
// machine: a page that shows the session, its tokens and what was refused, and
// that can cause what an app has to cope with. It must never be part of a
// broker that others can reach.
package devtools

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// Config is what the tools know of the broker.
type Config struct {
	Issuer   string  // of the development provider
	Audience string  // of access tokens
	Base     string  // path that browsers put before all paths, such as /shop; empty: none
	Prefix   string  // of the broker's endpoints, such as /bff
	Routes   []Route // of APIs
}

// Route is a path of an API and its upstream.
type Route struct{ Path, Upstream, Token string }

// Tools are a bff.Config.DevTools. UseProvider, Use, Store and Observe connect
// them with the provider and the broker, before there are requests.
type Tools struct {
	cfg      Config
	provider *devidp.Provider
	server   *bff.Server
	mux      *http.ServeMux

	storeDown, providerDown atomic.Bool
	watchers                sync.Map // :: *func(key string) → onChange of Watch

	events   ring[bff.Event]
	requests ring[request]
	reports  reports
}

// ReportPath is the path for reports of violations of the
// Content-Security-Policy, under Config.Prefix.
const ReportPath = bff.DevToolsPath + "/csp"

// page is the path at which browsers find the page.
func (t *Tools) page() string { return t.cfg.Base + t.cfg.Prefix + bff.DevToolsPath }

// kept is how many events and requests are kept.
const kept = 200

// New returns tools.
func New(cfg Config) *Tools {
	t := &Tools{cfg: cfg, mux: http.NewServeMux()}
	t.events.max, t.requests.max = kept, kept
	base := cfg.Prefix + bff.DevToolsPath
	t.mux.HandleFunc("GET "+base, t.showPage)
	t.mux.HandleFunc("GET "+base+"/{file}", t.serveFile)
	t.mux.HandleFunc("POST "+base+"/expire", t.action(func(r *http.Request) (string, error) {
		return "expired", t.server.ExpireTokens(r)
	}))
	t.mux.HandleFunc("POST "+base+"/end", t.action(func(r *http.Request) (string, error) {
		return "ended", t.server.EndSession(r)
	}))
	t.mux.HandleFunc("POST "+base+"/provider", t.toggle(t.providerDown.Store))
	t.mux.HandleFunc("POST "+base+"/store", t.toggle(t.switchStore))
	t.mux.HandleFunc("POST "+base+"/sign-in", t.signIn)
	t.mux.HandleFunc("POST "+cfg.Prefix+ReportPath, t.report)
	return t
}

// Use sets the server whose sessions are shown.
func (t *Tools) Use(server *bff.Server) { t.server = server }

// UseProvider sets the provider, whose hooks it replaces.
func (t *Tools) UseProvider(p *devidp.Provider) {
	t.provider = p
	p.SetHooks(devidp.Hooks{Intercept: t.intercept})
}

// Observe is a bff.Config.Observe.
func (t *Tools) Observe(_ context.Context, e bff.Event) { t.events.add(e) }

// ServeHTTP serves the page and its actions. The server has checked that a
// request comes from this origin if it changes something.
func (t *Tools) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	t.mux.ServeHTTP(w, r)
}

const maxBody = 64 << 10 // bytes

// intercept makes the provider fail while it is switched off.
func (t *Tools) intercept(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if t.providerDown.Load() {
		http.Error(w, "The development provider is switched off. The inspector at "+t.page()+
			" switches it on again.", http.StatusServiceUnavailable)
		return
	}
	next.ServeHTTP(w, r)
}

// toggle returns a handler that switches something off or on.
func (t *Tools) toggle(set func(down bool)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		set(r.PostFormValue("down") == "1")
		t.backToPage(w, r, "")
	}
}

// action returns a handler that does something with the request's session, and
// shows the page with a notice.
func (t *Tools) action(act func(r *http.Request) (notice string, err error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		notice, err := act(r)
		if err != nil {
			notice = "failed"
		}
		t.backToPage(w, r, notice)
	}
}

func (t *Tools) backToPage(w http.ResponseWriter, r *http.Request, notice string) {
	to := t.page()
	if notice != "" {
		to += "?notice=" + notice
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
}

// request is a line of the access log.
type request struct {
	Time           time.Time
	ID             string
	Method, Path   string
	Route          string
	Status         int
	Milliseconds   float64
	WaitedForToken bool
	Err            string
}
