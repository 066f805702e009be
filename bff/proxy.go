package bff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Route says what happens to the requests under a path.
type Route struct {
	Path     string   // begins with a slash; with one at the end it is everything below, without one also the path itself
	Upstream []string // http or https URLs; their path goes before the request's
	Token    string   // user: the user's access token, 401 without a session. none: nothing. There is no default
	CSRF     string   // header (the default), or fetch-metadata for what cannot send a header
}

// route is a Route as it is used.
type route struct {
	path      string
	upstream  *url.URL
	user      bool // attach the user's access token
	guard     func(s *Server, r *http.Request) error
	transport *http.Transport
}

func newRoute(r Route, field, prefix string) (*route, error) {
	parsed := &route{path: r.Path}
	var errs []error
	fail := func(name, format string, args ...any) {
		errs = append(errs, &session.FieldError{Field: field + "." + name, Err: fmt.Errorf(format, args...)})
	}
	if err := checkPath(r.Path); err != nil {
		fail("Path", "%w", err)
	} else if strings.ContainsAny(r.Path, "%?#") {
		fail("Path", "%q: write it without percent-encoding, query and fragment", r.Path)
	} else if underPath(r.Path, prefix) {
		fail("Path", "%q is under the broker's own %q", r.Path, prefix)
	}
	u, err := url.Parse(strings.Join(r.Upstream, ","))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		fail("Upstream", "%q is not a URL such as http://orders.internal:8080", r.Upstream)
	}
	parsed.upstream = u
	switch r.Token {
	case "user":
		parsed.user = true
	case "none":
	default:
		fail("Token", "%q is none of user, none", r.Token)
	}
	switch r.CSRF {
	case "", "header":
		parsed.guard = fetch
	case "fetch-metadata":
		parsed.guard = sameOrigin
	default:
		fail("CSRF", "%q is none of header, fetch-metadata", r.CSRF)
	}
	parsed.transport = &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ResponseHeaderTimeout: 60 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   256,
		DisableCompression:    true, // what the upstream sends is what the browser gets
		ForceAttemptHTTP2:     true,
	}
	return parsed, errors.Join(errs...)
}

// proxy hands the request on to the route's upstream, with the user's access token where the route says so.
func (s *Server) proxy(w *response, r *http.Request, route *route) error {
	if err := route.guard(s, r); err != nil {
		return err
	}
	if err := s.upgradeAllowed(r); err != nil {
		return err
	}
	var token string
	var current *session.Session
	if route.user {
		if queryHas(r.URL.RawQuery, "access_token") { // RFC 6750 2: one token, one way
			return errTokenInQuery
		}
		var err error
		if current, err = s.sessions.Fresh(r.Context(), r); err != nil {
			return err
		}
		w.session = current.ID
		if r.Header.Get("X-Background") != "1" {
			if err := s.sessions.Touch(r.Context(), current); err != nil {
				return err
			}
		}
		token = current.Tokens.Access.Reveal()
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		defer s.sessions.WhenEnded(current, func() { cancel(session.ErrEnded) })()
		r = r.WithContext(ctx)
	}
	var failed error
	forward := httputil.ReverseProxy{
		Transport: route.transport,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(route.upstream)
			p.Out.URL.RawQuery = p.In.URL.RawQuery // as it came: what it means is for the upstream to say
			s.filterRequest(p.Out.Header)
			s.setForwarded(p)
			p.Out.Header.Add("Via", "1.1 cloakroom") // RFC 9110 7.6.3
			if token != "" {
				p.Out.Header.Set("Authorization", "Bearer "+token)
			}
		},
		ModifyResponse: func(resp *http.Response) error {
			s.filterResponse(resp.Header)
			if resp.StatusCode != http.StatusSwitchingProtocols {
				filterTrailer(resp.Trailer)
				resp.Body = &bodyWithTrailer{resp.Body, resp}
			}
			if current != nil && s.sessions.RenewCookie(r.Context(), w, r, current) {
				notCached(resp.Header)
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			if failed = upstreamProblem(err); context.Cause(r.Context()) == session.ErrEnded {
				failed = session.ErrNone
			}
		},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug), // an answer that breaks off shows in our own log line
	}
	forward.ServeHTTP(w, r)
	return failed
}

// upgradeAllowed lets a WebSocket through that a page of our own origin opens, and no other protocol: h2c would take what is said after it past
// all that is checked here (RFC 9113 3.1, RFC 6455 10.2).
func (s *Server) upgradeAllowed(r *http.Request) error {
	upgrade := r.Header.Values("Upgrade")
	switch {
	case len(upgrade) == 0:
		return nil
	case len(upgrade) != 1 || !strings.EqualFold(upgrade[0], "websocket"):
		return errUpgrade.because(fmt.Errorf("the Upgrade is %.40q", upgrade))
	case len(r.Header.Values("Origin")) == 0:
		return errCSRF.because(errors.New("a WebSocket without an Origin"))
	case r.Header.Get("Origin") == "null":
		return errCSRF.because(errors.New("a WebSocket of the Origin null"))
	}
	return s.originAllowed(r)
}

// queryHas says whether a query has a parameter, for whichever way of reading it.
func queryHas(query, name string) bool {
	for part := range strings.FieldsFuncSeq(query, func(c rune) bool { return c == '&' || c == ';' }) {
		key, _, _ := strings.Cut(part, "=")
		if unescaped, err := url.QueryUnescape(key); err == nil {
			key = unescaped
		}
		if strings.EqualFold(key, name) {
			return true
		}
	}
	return false
}

func upstreamProblem(err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &timeout) && timeout.Timeout():
		return errUpstreamTimeout.because(err)
	}
	return errUpstream.because(err)
}

// notUpstream are the request headers that are ours, or that only a proxy may set. Names that begin with X-Forwarded-, or hold an underscore,
// which some servers take for a hyphen, go too.
var notUpstream = map[string]bool{
	"Authorization": true, "Proxy-Authorization": true, "Dpop": true, "Forwarded": true,
	"X-Real-Ip": true, "X-Original-Url": true, "X-Rewrite-Url": true, "X-Original-Uri": true,
	"X-Http-Method-Override": true, "X-Http-Method": true, "X-Method-Override": true,
	"X-Csrf": true, "X-Background": true,
}

// filterRequest takes out of a request's header what must not reach an upstream, our cookies among it.
func (s *Server) filterRequest(h http.Header) {
	for name := range h {
		if notUpstream[name] || strings.HasPrefix(name, "X-Forwarded-") || strings.ContainsRune(name, '_') {
			delete(h, name)
		}
	}
	lines := h["Cookie"]
	delete(h, "Cookie")
	for _, line := range lines {
		if rest := s.withoutOurCookies(line); rest != "" {
			h["Cookie"] = append(h["Cookie"], rest)
		}
	}
}

func (s *Server) withoutOurCookies(line string) string {
	var rest []string
	for part := range strings.SplitSeq(line, ";") {
		part = strings.TrimSpace(part)
		name, _, _ := strings.Cut(part, "=")
		if part != "" && !s.ourCookie(strings.TrimSpace(name)) {
			rest = append(rest, part)
		}
	}
	return strings.Join(rest, "; ")
}

// ourCookie says whether a cookie name is one of ours, in any case of letters.
func (s *Server) ourCookie(name string) bool {
	name = strings.ToLower(name)
	return name == strings.ToLower(s.sessions.CookieName()) || strings.HasPrefix(name, strings.ToLower(s.attempts.name))
}

// setForwarded tells the upstream who asked for what: the address in front of the trusted proxies, and the host and scheme that the browser sees.
func (s *Server) setForwarded(p *httputil.ProxyRequest) {
	h := p.Out.Header
	h.Set("X-Forwarded-Host", s.host)
	h.Set("X-Forwarded-Proto", s.origin[:strings.Index(s.origin, ":")])
	if client := s.clientIP(p.In); client != "" {
		h.Set("X-Forwarded-For", client)
	}
}

// clientIP is the address of whoever is in front of the last trusted proxy.
func (s *Server) clientIP(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	ip := peer.Addr().Unmap()
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && s.trusts(ip); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		ip = hop.Unmap()
	}
	return ip.String()
}

// notDownstream are the response headers by which an upstream would act on our whole origin.
var notDownstream = []string{
	"Clear-Site-Data", "Strict-Transport-Security", "Service-Worker-Allowed", "Alt-Svc", "Refresh", "Public-Key-Pins",
	"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers",
	"Access-Control-Expose-Headers", "Access-Control-Max-Age", "Access-Control-Allow-Private-Network",
	"Secure-Session-Registration", "Secure-Session-Challenge", "Server", "X-Powered-By",
}

// filterResponse takes out of a response's header what is not for an upstream to say, and keeps what it says from being cached
// for somebody else.
func (s *Server) filterResponse(h http.Header) {
	for _, name := range notDownstream {
		h.Del(name)
	}
	cookies := h["Set-Cookie"]
	delete(h, "Set-Cookie")
	for _, line := range cookies {
		pair, _, _ := strings.Cut(line, ";")
		name, _, named := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		// One without a name is sent back as its value alone, which reads as another cookie's name (RFC 6265bis 5.7).
		if named && name != "" && !s.ourCookie(name) && !strings.HasPrefix(strings.ToLower(name), "__") && !hasDomain(line) {
			h["Set-Cookie"] = append(h["Set-Cookie"], line)
		}
	}
	if h.Get("Cache-Control") == "" && h.Get("Expires") == "" || len(h["Set-Cookie"]) > 0 { // a cookie is for one user, whatever is said of the rest
		notCached(h)
	}
}

// hasDomain says whether a Set-Cookie line is for other hosts too.
func hasDomain(line string) bool {
	_, attributes, _ := strings.Cut(line, ";")
	for attribute := range strings.SplitSeq(attributes, ";") {
		name, _, _ := strings.Cut(attribute, "=")
		if strings.EqualFold(strings.TrimSpace(name), "domain") {
			return true
		}
	}
	return false
}

// filterTrailer takes out of a trailer what is taken out of a header.
func filterTrailer(h http.Header) {
	for _, name := range notDownstream {
		h.Del(name)
	}
	h.Del("Set-Cookie")
	h.Del("Cache-Control")
}

// bodyWithTrailer filters the trailer of a response when it is there: at the end of the body.
type bodyWithTrailer struct {
	io.ReadCloser
	resp *http.Response
}

func (b *bodyWithTrailer) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		filterTrailer(b.resp.Trailer)
	}
	return n, err
}

func notCached(h http.Header) {
	h.Set("Cache-Control", "private, no-store")
	for _, name := range []string{"Expires", "Pragma", "Surrogate-Control", "Cdn-Cache-Control"} {
		h.Del(name)
	}
}
