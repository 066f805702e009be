package bff

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/adminpage"
	"github.com/cloakroom-bff/cloakroom/internal/expiry"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
)

// Admin returns the handler for an admin listener, which must not be public:
//
//   - /healthz has the status 200 while the process runs.
//   - /readyz has the status 200 while Run serves, and 503 before that, and
//     from the beginning of the shutdown. It does not depend on the provider,
//     the store and the upstreams, which all replicas share.
//   - /readyz?verbose also lists these and the open connections, one a line.
//     [+] means that the check passes, [-] that it fails. It needs AdminToken,
//     unless the request arrives on the loopback interface and names a
//     loopback host.
//   - GET /admin/sessions?sub=SUB&sid=SID lists the sessions of a user, or of
//     one session at the provider. DELETE /admin/sessions/ID ends one session.
//     POST /admin/revoke with {"sub": SUB} or {"sid": SID} ends all of them.
//   - GET /admin/why returns the last events of a session, a user or a request,
//     as a JSON array of Event. These are for administrators alone (see
//     RequireAdmin).
func (s *Server) Admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", s.readyz)
	s.addSessionsAPI(mux)
	return mux
}

func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	text := "ok\n"
	switch serverState(s.state.Load()) {
	case stateStarting:
		w.WriteHeader(http.StatusServiceUnavailable)
		text = "starting\n"
	case stateStopping:
		w.WriteHeader(http.StatusServiceUnavailable)
		text = "shutting down\n"
	}
	if r.URL.Query().Has("verbose") {
		a := s.current.Load()
		text += a.details(a.identify(w, r))
	}
	io.WriteString(w, text)
}

// details returns the list of /readyz?verbose. It names upstreams, so that it
// is not for every client that reaches the listener, nor for pages of other
// origins whose name leads here (DNS rebinding). The status is: probes need it.
func (a *app) details(r *http.Request) (list string) {
	known := r.Context().Value(http.LocalAddrContextKey) != nil // otherwise it did not arrive on a connection
	if known && !(onLoopback(r) && loopback.IsHost(hostname(r.Host))) {
		if refusal := a.refuseAdmin(r); refusal != nil {
			if !refusal.noToken {
				a.emitAdminRefused(r, refusal)
			}
			return "details are for administrators: " + refusal.cause + "\n"
		}
	}
	for _, c := range a.checks(r.Context()) {
		mark := "+"
		if c.Failed {
			mark = "-"
		}
		list += fmt.Sprintf("[%s] %s: %s\n", mark, c.Name, c.Note)
	}
	return list
}

// checks returns the state of what the broker depends on.
func (a *app) checks(ctx context.Context) []adminpage.Check {
	var all []adminpage.Check
	check := func(name string, err error, note string) {
		if err != nil {
			note = err.Error()
		}
		all = append(all, adminpage.Check{Name: name, Failed: err != nil, Note: note})
	}
	check("provider", a.provider.Status(), "ok")
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	began := time.Now()
	_, _, _, err := a.store.Get(ctx, "readyz")
	if err == nil { // reads may succeed while writes fail
		err = a.server.storeOutage.current()
	}
	check("store", err, "ok, "+time.Since(began).Round(10*time.Microsecond).String())
	check("invalidation", failedIf(!a.sessions.CacheValid(), "changes are not announced; the cache is not used"), "ok")
	for _, route := range a.proxied() {
		for _, upstream := range route.proxy.Status() {
			note := "ok"
			if upstream.Unused {
				note = "not used yet"
			}
			check("upstream "+route.Path+" "+upstream.Address,
				failedIf(upstream.Failed, "the last requests failed"), note)
		}
	}
	certificates := map[string]*tls.Certificate{"oidc.client_cert_file": a.provider.Config().ClientCertificate}
	if secure := a.server.tls; secure != nil {
		certificates["server.tls"] = served(secure)
	}
	for _, name := range []string{"server.tls", "oidc.client_cert_file"} {
		if cert := certificates[name]; cert != nil && cert.Leaf != nil {
			var err error
			left := time.Until(cert.Leaf.NotAfter)
			end := cert.Leaf.NotAfter.UTC().Format(time.RFC3339)
			if left < 0 {
				err = fmt.Errorf("expired at %s", end)
			}
			check("certificate "+name, err, "expires at "+end)
			all[len(all)-1].Warning = left >= 0 && time.Now().After(expiry.Near(cert.Leaf))
		}
	}
	if open, limit := a.server.conns.count(); limit > 0 {
		all = append(all, adminpage.Check{
			Name: "connections", Failed: open >= limit, Note: fmt.Sprintf("%d of %d", open, limit),
		})
	}
	return all
}

// failedIf returns an error if failed.
func failedIf(failed bool, text string) error {
	if failed {
		return errors.New(text)
	}
	return nil
}

// served returns the certificate that a server with cfg shows, or nil.
func served(cfg *tls.Config) *tls.Certificate {
	if cfg.GetCertificate != nil {
		cert, _ := cfg.GetCertificate(&tls.ClientHelloInfo{})
		return cert
	}
	if len(cfg.Certificates) > 0 {
		return &cfg.Certificates[0]
	}
	return nil
}

// RequireAdmin returns a handler that calls h for requests of administrators.
// It is for handlers on the admin listener. If Config.AdminToken is set, a
// request needs it as its bearer token. Otherwise a request has to arrive on
// the loopback interface and name a loopback host. It must not come from a page
// of another origin. Other requests are refused with 401 or 403. An address
// that has sent 50 wrong tokens may send one a second; its other wrong tokens
// are refused with 429. So is the right one meanwhile, if it has fewer than 20
// characters.
func (s *Server) RequireAdmin(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		a := s.current.Load()
		r = a.identify(w, r)
		refusal := a.refuseAdmin(r)
		if refusal == nil {
			h.ServeHTTP(w, r)
			return
		}
		a.emitAdminRefused(r, refusal)
		refusal.setHeader(w.Header())
		http.Error(w, refusal.cause, refusal.status)
	})
}

// adminRefusal says why a request is not one of an administrator.
type adminRefusal struct {
	status  int
	cause   string
	noToken bool          // the request has no bearer token, and needs one
	wait    time.Duration // of status 429
}

// setHeader sets what a response with the status has to have.
func (r *adminRefusal) setHeader(h http.Header) {
	switch r.status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests:
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(r.wait.Seconds()))))
	}
}

const fromOtherOrigin = "the request comes from a page of another origin"

// crossOrigin refuses requests that a page of another origin makes a browser
// send, except for GET and HEAD.
var crossOrigin http.CrossOriginProtection

// refuseAdmin returns why a request is not one of an administrator, or nil.
func (a *app) refuseAdmin(r *http.Request) *adminRefusal {
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	isBearer := strings.EqualFold(scheme, "Bearer") // RFC 9110, section 11.1
	switch {
	case a.adminToken != "" && isBearer:
		return a.checkAdminToken(r, given)
	case a.adminToken != "":
		return &adminRefusal{
			status: http.StatusUnauthorized, cause: "send Authorization: Bearer with server.admin_token", noToken: true,
		}
	case !onLoopback(r):
		return &adminRefusal{
			status: http.StatusUnauthorized,
			cause:  "this address is not on the loopback interface: set server.admin_token",
		}
	case !loopback.IsHost(hostname(r.Host)):
		return &adminRefusal{
			status: http.StatusForbidden, cause: "the host has to be localhost or a loopback address",
		}
	case crossOrigin.Check(r) != nil:
		return &adminRefusal{status: http.StatusForbidden, cause: fromOtherOrigin}
	}
	return nil
}

// wrongTokenLimit bounds how often one address can guess the admin token.
var wrongTokenLimit = RateLimit{Rate: 1, Burst: 50}

// guessable is how short a token has to be to be found by guessing, in bytes.
const guessable = 20

// checkAdminToken returns why a token is refused, or nil. An address that has
// guessed too often is refused even with the right token if that could be
// guessed: otherwise the limit would not slow it down. Other tokens are always
// accepted, because behind a proxy administrators share the attacker's address.
func (a *app) checkAdminToken(r *http.Request, given string) *adminRefusal {
	right := a.adminToken != "" && sameSecret(given, a.adminToken.Reveal())
	if right && len(a.adminToken) >= guessable {
		return nil
	}
	address := addressKey(hostname(r.RemoteAddr))
	if wait := a.server.wrongTokens.check(address); wait > 0 {
		return &adminRefusal{
			status: http.StatusTooManyRequests, cause: "too many wrong tokens from this address", wait: wait,
		}
	}
	if !right {
		a.server.wrongTokens.take(address)
		return &adminRefusal{status: http.StatusUnauthorized, cause: "this is not server.admin_token"}
	}
	return nil
}

// emitAdminRefused reports a request that was refused.
func (a *app) emitAdminRefused(r *http.Request, refusal *adminRefusal) {
	a.emit(r.Context(), Event{
		Kind: AdminRefused, Cause: refusal.cause,
		level: slog.LevelWarn, message: "request of an administrator refused",
	})
}

// adminRequestKey is the key of an adminRequest in the context of a request to
// the admin listener.
type adminRequestKey struct{}

// adminRequest is the ID of a request to the admin listener, and the address of
// its client.
type adminRequest struct{ id, client string }

// identify gives a request to the admin listener an ID, which the response
// names.
func (a *app) identify(w http.ResponseWriter, r *http.Request) *http.Request {
	id, _, _ := a.requestID(r)
	w.Header()["X-Request-Id"] = []string{id}
	return r.WithContext(context.WithValue(r.Context(), adminRequestKey{}, adminRequest{id, a.clientIP(r)}))
}

// maxTarget bounds Event.Target, in bytes.
const maxTarget = 128

// named adds to an event what an administrator named: by is sub, sid, id or
// request.
func (a *app) named(e Event, by, value string) Event {
	e.By, e.Target = by, truncate(value, maxTarget)
	if by == "sub" {
		e.subject, e.Target = value, a.user(value)
	}
	return e
}

// sameSecret compares in constant time, also if the lengths differ.
func sameSecret(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// onLoopback reports whether a request arrived on the loopback interface.
func onLoopback(r *http.Request) bool {
	switch addr := r.Context().Value(http.LocalAddrContextKey).(type) {
	case *net.TCPAddr:
		return addr.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}

// hostname returns a Host header without its port.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}
