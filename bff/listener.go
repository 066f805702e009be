package bff

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/http1"
)

// NewListener returns a listener for the http.Server of a program that does not
// give its listeners to Server.Run. It accepts only HTTP/1.1 requests whose end
// is unambiguous (RFC 9112, section 11.2): net/http accepts some requests that
// other servers read as two requests. To ambiguous requests the http.Server
// responds with 400, and closes the connection. A handler could not detect
// them. What follows a request for a WebSocket is not checked: handlers beside
// the Server must close its connection (Connection: close) unless they switch.
// With a tls.Config it terminates TLS, and passes HTTP/2, which has its own
// framing. The requests that are refused are logged; a nil logger means
// slog.Default(). A header larger than http.Server.MaxHeaderBytes is refused
// with 431, and so is any larger than http.DefaultMaxHeaderBytes. The number of
// connections is not limited, unlike that of the listeners of Server.Run.
func NewListener(l net.Listener, cfg *tls.Config, log *slog.Logger) net.Listener {
	if log == nil {
		log = slog.Default()
	}
	// net/http accepts this much more than MaxHeaderBytes, and is asked first.
	const slack = 8 << 10
	return newListener(l, cfg, &checks{
		log: log, headerBytes: http.DefaultMaxHeaderBytes + slack, largeHeaders: new(refusals), memory: new(memory),
	})
}

// checks are the checks of requests on a connection.
type checks struct {
	// ofRun: connections with HTTP/2 are *http2Conn, for which http.Server
	// needs UnencryptedHTTP2, and the others have no checks yet.
	ofRun        bool
	log          *slog.Logger
	headerBytes  int       // maximum size of a header, with the request line
	largeHeaders *refusals // larger ones
	memory       *memory   // while it is scarce, the connection of a header of more than 8 KiB is closed
}

func newListener(l net.Listener, cfg *tls.Config, checks *checks) net.Listener {
	if cfg == nil {
		return plainListener{l, checks}
	}
	ctx, stop := context.WithCancel(context.Background())
	t := &tlsListener{
		Listener: l, cfg: cfg, checks: checks,
		ready: make(chan net.Conn), failed: make(chan error, 1), ctx: ctx, stop: stop,
	}
	go t.acceptAll() // until Close
	return t
}

type plainListener struct {
	net.Listener
	checks *checks
}

func (l plainListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if l.checks.ofRun {
		return c, nil
	}
	return l.checks.serverConn(c), nil
}

// serverConn returns a connection whose refused requests are logged.
func (k *checks) serverConn(c net.Conn) net.Conn {
	return http1.ServerConn(c, k.headerBytes, k.memory.isScarce, func(status int, cause string) {
		switch status {
		case http.StatusRequestHeaderFieldsTooLarge:
			k.refuseHeader(clientOf(c), cause)
		case http.StatusServiceUnavailable:
			k.memory.refuse(k.log, clientOf(c))
		default:
			k.log.Warn("request refused",
				"client", clientOf(c), "status", status, "err", truncate(cause, maxLogged))
		}
	})
}

// refuseHeader counts and logs a request whose header is too large.
func (k *checks) refuseHeader(client, cause string) {
	k.largeHeaders.add(func(count uint64) {
		k.log.Warn("request refused", "client", client,
			"status", http.StatusRequestHeaderFieldsTooLarge, "err", cause, "count", count)
	})
}

// tlsListener accepts a connection after its TLS handshake, which selects the
// protocol.
type tlsListener struct {
	net.Listener
	cfg    *tls.Config
	checks *checks
	ready  chan net.Conn
	failed chan error
	ctx    context.Context // ends with Close
	stop   context.CancelFunc
}

const handshakeTimeout = 10 * time.Second

func (l *tlsListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	case err := <-l.failed:
		l.failed <- err // for the next call
		return nil, err
	}
}

func (l *tlsListener) Close() error {
	l.stop()
	return l.Listener.Close()
}

func (l *tlsListener) acceptAll() {
	var shaking sync.WaitGroup
	for {
		c, err := l.Listener.Accept()
		if temporary, ok := err.(interface{ Temporary() bool }); ok && temporary.Temporary() && l.ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond) // as http.Server does: there are no file descriptors left
			continue
		}
		if err != nil {
			shaking.Wait()
			l.failed <- err
			return
		}
		shaking.Go(func() { l.shake(c) }) // bounded by handshakeTimeout, and by Close
	}
}

func (l *tlsListener) shake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(l.ctx, handshakeTimeout)
	defer cancel()
	c := tls.Server(raw, l.cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		l.checks.log.Debug("TLS handshake failed", "client", raw.RemoteAddr().String(),
			"err", truncate(err.Error(), maxLogged))
		if plain := (tls.RecordHeaderError{}); errors.As(err, &plain) && plain.Conn != nil {
			writeUseHTTPS(plain.Conn, plain.RecordHeader)
		}
		raw.Close()
		return
	}
	ready := net.Conn(c)
	switch isHTTP2 := c.ConnectionState().NegotiatedProtocol == "h2"; {
	case isHTTP2 && l.checks.ofRun:
		ready = newHTTP2Conn(c, l.checks)
	case !isHTTP2 && !l.checks.ofRun:
		ready = l.checks.serverConn(c)
	}
	select {
	case l.ready <- ready:
	case <-l.ctx.Done():
		raw.Close()
	}
}

// writeUseHTTPS responds to a client that begins a request instead of a TLS
// handshake, if first is the beginning of one. http.Server does so too.
func writeUseHTTPS(w io.Writer, first [5]byte) {
	if !slices.Contains([]string{"GET /", "HEAD ", "POST ", "PUT /", "OPTIO"}, string(first[:])) {
		return
	}
	io.WriteString(w, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"+
		"This port needs TLS: use https instead of http.\n") // fails if the client has left
}

// serveChecked is ServeHTTP for the listeners of Run. It refuses requests while
// memory is scarce. In HTTP/2 it checks the header, which the listener does in
// HTTP/1.1, and the number of requests.
func (s *Server) serveChecked(w http.ResponseWriter, r *http.Request) {
	client := func() string {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		return host
	}
	if s.memory.isScarce() {
		s.memory.refuse(s.log, client())
		refuseOverloaded(w)
		return
	}
	if r.ProtoMajor >= 2 {
		if headerSize(r) > s.checks.headerBytes || fields(r) > http1.MaxFields {
			s.checks.refuseHeader(client(), refuse(w, http.StatusRequestHeaderFieldsTooLarge))
			return
		}
		if !s.conns.enterStream(client()) {
			refuseOverloaded(w)
			return
		}
		defer s.conns.leaveStream()
	}
	s.ServeHTTP(w, r)
}

// refuseOverloaded has the client send its request to another replica, or
// later.
func refuseOverloaded(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "5")
	w.Header().Set("Connection", "close")
	refuse(w, http.StatusServiceUnavailable)
	http.NewResponseController(w).SetReadDeadline(time.Now()) // otherwise net/http waits for the body
}

// refuse writes a short response with a status, and returns its text.
func refuse(w http.ResponseWriter, status int) (text string) {
	text = fmt.Sprintf("%d %s", status, http.StatusText(status))
	http.Error(w, text, status)
	return text
}

// fields returns the number of a request's header fields.
func fields(r *http.Request) (n int) {
	for _, values := range r.Header {
		n += len(values)
	}
	return n
}

// headerSize returns the size that a request's header would have in HTTP/1.1,
// with the request line.
func headerSize(r *http.Request) int {
	size := len(r.Method) + len(r.RequestURI) + len("  HTTP/1.1\r\n") + len("Host: \r\n") + len(r.Host) + len("\r\n")
	for name, values := range r.Header {
		for _, value := range values {
			size += len(name) + len(": \r\n") + len(value)
		}
	}
	return size
}
