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
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/loopback"
)

// Admin returns the handler for an admin listener, which must not be public:
//
//   - /healthz has the status 200 while the process runs.
//   - /readyz has the status 200 while Run serves, and 503 before that, and
//     from the beginning of the shutdown. It does not depend on the provider,
//     the store and the upstreams, which all replicas share.
//   - /readyz?verbose also lists these and the open connections, one a line.
//     [+] means that the check passes, [-] that it fails.
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
	mux.Handle("GET /admin/why", s.RequireAdmin(http.HandlerFunc(s.why)))
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
		text += s.current.Load().describe(r.Context(), s.tls) + s.conns.describe()
	}
	io.WriteString(w, text)
}

// describe returns a line for each of what the app depends on.
func (a *app) describe(ctx context.Context, secure *tls.Config) string {
	var lines strings.Builder
	check := func(name string, err error, note string) {
		if err != nil {
			fmt.Fprintf(&lines, "[-] %s: %v\n", name, err)
		} else {
			fmt.Fprintf(&lines, "[+] %s: %s\n", name, note)
		}
	}
	check("provider", a.provider.Status(), "ok")
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	began := time.Now()
	_, _, _, err := a.store.Get(ctx, "readyz")
	check("store", err, "ok, "+time.Since(began).Round(10*time.Microsecond).String())
	check("invalidation", failedIf(!a.sessions.CacheValid(), "changes are not announced; the cache is not used"), "ok")
	for _, route := range a.routes {
		if route.proxy == nil {
			continue
		}
		for _, upstream := range route.proxy.Status() {
			check("upstream "+route.Path+" "+upstream.Address,
				failedIf(upstream.Failed, "the last requests failed"), "ok")
		}
	}
	certificates := map[string]*tls.Certificate{"oidc.client_cert_file": a.provider.Config().ClientCertificate}
	if secure != nil {
		certificates["server.tls"] = served(secure)
	}
	for _, name := range []string{"server.tls", "oidc.client_cert_file"} {
		if cert := certificates[name]; cert != nil && cert.Leaf != nil {
			var err error
			end := cert.Leaf.NotAfter.UTC().Format(time.RFC3339)
			if time.Now().After(cert.Leaf.NotAfter) {
				err = fmt.Errorf("expired at %s", end)
			}
			check("certificate "+name, err, "expires at "+end)
		}
	}
	return lines.String()
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
// of another origin. Other requests are refused with 401 or 403.
func (s *Server) RequireAdmin(h http.Handler) http.Handler {
	var crossOrigin http.CrossOriginProtection
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		a := s.current.Load()
		refuse := func(status int, cause string) {
			a.emit(r.Context(), Event{
				Kind: AdminRefused, Client: hostname(r.RemoteAddr), Cause: cause,
				level: slog.LevelWarn, message: "request of an administrator refused",
			})
			if status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", "Bearer")
			}
			http.Error(w, cause, status)
		}
		token := a.adminToken.Reveal()
		switch given, isBearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); {
		case token != "" && (!isBearer || !sameSecret(given, token)):
			refuse(http.StatusUnauthorized, "send Authorization: Bearer with server.admin_token")
		case token == "" && !onLoopback(r):
			refuse(http.StatusUnauthorized, "this address is not on the loopback interface: set server.admin_token")
		case token == "" && !loopback.IsHost(hostname(r.Host)):
			refuse(http.StatusForbidden, "the host has to be localhost or a loopback address")
		case token == "" && crossOrigin.Check(r) != nil:
			refuse(http.StatusForbidden, "the request comes from a page of another origin")
		default:
			h.ServeHTTP(w, r)
		}
	})
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
