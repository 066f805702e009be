package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/cancel"
)

// isWebSocket reports whether a header asks for a WebSocket, or accepts it, and
// for nothing else.
func isWebSocket(h http.Header) bool {
	upgrade := h["Upgrade"]
	return len(upgrade) == 1 && strings.EqualFold(upgrade[0], "websocket")
}

// tunnel connects the client's and the upstream's connection after a switch of
// protocols. It returns when both sides have ended, when either fails, or when
// ctx is canceled.
func (x *exchange) tunnel(ctx context.Context) error {
	upstream, ok := x.resp.Body.(io.ReadWriteCloser)
	if !ok || len(x.r.Header["Upgrade"]) == 0 || !isWebSocket(x.resp.Header) {
		cause := fmt.Errorf("the upstream switches to the protocol %.40q", x.resp.Header["Upgrade"])
		return problem.UpstreamFailed.WithCause(cause)
	}
	h := x.w.Header()
	x.copyHeader(h, x.resp.Header)
	h["Upgrade"], h["Connection"] = []string{"websocket"}, []string{"Upgrade"}
	client, buffered, err := x.conn.Load().Hijack()
	if err != nil {
		return problem.UpgradeRefused.WithCause(err)
	}
	defer client.Close()
	x.freeFields()
	x.clientLeft.Stop() // to net/http a client that has only stopped sending has left
	closeBoth := func() {
		client.Close()
		upstream.Close()
	}
	defer cancel.AfterFunc(ctx, closeBoth).Stop()
	client.SetDeadline(time.Time{}) // net/http has set one
	x.record.Status = http.StatusSwitchingProtocols
	head := http.Response{StatusCode: x.record.Status, ProtoMajor: 1, ProtoMinor: 1, Header: h}
	if head.Write(client) != nil {
		return nil // the client has left
	}
	var sending sync.WaitGroup
	sending.Go(func() { // until the client, or either connection, ends
		err := x.copyBuffered(upstream, buffered, -1)
		if err == nil {
			err = closeWrite(upstream)
		}
		if err != nil {
			closeBoth() // the upstream may be waiting for a client that is gone
		}
	})
	err = x.copyBuffered(&countingWriter{client, x.record}, upstream, -1)
	if err == nil {
		err = closeWrite(client)
	}
	if err != nil {
		closeBoth()
	}
	sending.Wait()
	return nil
}

// closeWrite tells a peer that nothing more will be sent.
func closeWrite(c any) error {
	if c, ok := c.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.New("one direction of the connection cannot be closed")
}
