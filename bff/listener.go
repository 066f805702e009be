package bff

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/http1"
)

// NewListener returns a listener for the http.Server of a program that does not
// give its listeners to Server.Run. It accepts only HTTP/1.1 requests whose end
// is unambiguous (RFC 9112, section 11.2): net/http accepts some that other
// servers take for two. The http.Server responds with 400 to the others, and
// closes the connection. A handler could not see the difference. With a
// tls.Config it terminates TLS, and passes HTTP/2, which has its own framing.
// The requests that are refused are logged; a nil logger means slog.Default().
func NewListener(l net.Listener, cfg *tls.Config, log *slog.Logger) net.Listener {
	if log == nil {
		log = slog.Default()
	}
	if cfg == nil {
		return plainListener{l, log}
	}
	ctx, stop := context.WithCancel(context.Background())
	t := &tlsListener{
		Listener: l, cfg: cfg, log: log,
		ready: make(chan net.Conn), failed: make(chan error, 1), ctx: ctx, stop: stop,
	}
	go t.acceptAll() // until Close
	return t
}

type plainListener struct {
	net.Listener
	log *slog.Logger
}

func (l plainListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return serverConn(c, l.log), nil
}

// serverConn returns a connection whose refused requests are logged.
func serverConn(c net.Conn, log *slog.Logger) net.Conn {
	return http1.ServerConn(c, func(status int, cause string) {
		client, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		log.Warn("request refused", "client", client, "status", status, "err", truncate(cause, maxLogged))
	})
}

// tlsListener accepts a connection after its TLS handshake, which selects the
// protocol.
type tlsListener struct {
	net.Listener
	cfg    *tls.Config
	log    *slog.Logger
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
		l.log.Debug("TLS handshake failed", "client", raw.RemoteAddr().String(),
			"err", truncate(err.Error(), maxLogged))
		raw.Close()
		return
	}
	ready := net.Conn(c)
	if c.ConnectionState().NegotiatedProtocol != "h2" {
		ready = serverConn(c, l.log)
	}
	select {
	case l.ready <- ready:
	case <-l.ctx.Done():
		raw.Close()
	}
}
