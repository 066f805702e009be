package bff

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/dpop"
	"github.com/cloakroom-bff/cloakroom/internal/pace"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
	"github.com/cloakroom-bff/cloakroom/session"
)

// proxy forwards a request to the route's upstream, with the token that the route
// is configured for.
func (s *Server) proxy(w *response, r *http.Request, route *route) error {
	if route.AcceptBearer != nil && hasBearerToken(r) {
		return s.proxyWithCallerToken(w, r, route)
	}
	granted, err := s.authorize(w, r, route)
	if err != nil {
		return err
	}
	return s.exchange(w, r, route, granted)
}

// exchange makes the exchange with the upstream of a request that may go there.
func (s *Server) exchange(w *response, r *http.Request, route *route, granted access) error {
	// What the exchange runs under is not the request's own context, which ends with the handler: a stream goes on without it.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	current := granted.session
	x := &exchange{s: s, w: w, r: r, route: route, current: current, token: granted.token, cancel: cancel}
	x.writer.Store(http.NewResponseController(w))
	defer func() {
		if !w.streams {
			x.end()
		}
	}()
	x.clientLeft = context.AfterFunc(r.Context(), func() { cancel(context.Canceled) })
	if current != nil {
		x.sessionEnded = s.sessions.OnEnd(current, func() { x.breakOff(session.ErrEnded) })
	}
	if d := route.Timeouts.Idle; d > 0 {
		x.idle = time.AfterFunc(d, func() { x.breakOff(errStoodStill) })
	}
	return x.run(ctx)
}

// errShutdown ends a stream because the server ends.
var errShutdown = errors.New("the server ends")

// errStoodStill ends an exchange in which nothing has moved for the route's idle time-out.
var errStoodStill = errors.New("nothing moved for the idle time-out")

// exchange is one request on its way to the upstream, and the answer on its way back.
type exchange struct {
	s       *Server
	w       *response
	r       *http.Request
	route   *route
	current *session.Session // nil: nobody's
	token   accessToken
	idle    *time.Timer // nil: it may stand still
	cancel  context.CancelCauseFunc
	down    pace.Monitor // of the response's body
	writing atomic.Bool  // to the client

	breaking sync.Mutex                              // held while breakOff uses the writer
	writer   atomic.Pointer[http.ResponseController] // of the client's connection; nil once a stream has it, and in the end

	// What is taken back at the end; nil before it is there.
	clientLeft, shutdown func() bool
	sessionEnded         func()
	address              *address
	resp                 *http.Response
	header               http.Header // of the request to the upstream
}

// breakOff ends the exchange from outside, also where a client is waited for that does not read, or send. Its connection is closed then.
func (x *exchange) breakOff(cause error) {
	x.cancel(cause)
	x.breaking.Lock()
	defer x.breaking.Unlock()
	if w := x.writer.Load(); w != nil {
		w.SetReadDeadline(time.Now())
		w.SetWriteDeadline(time.Now().Add(breakOffTime))
	}
}

// breakOffTime is how long a client may take to read how its request has ended.
const breakOffTime = time.Second

// forgetWriter has breakOff leave the client's connection alone from now on: when the handler has returned it is the server's.
func (x *exchange) forgetWriter() {
	x.breaking.Lock() // which waits for a breakOff that is under way
	defer x.breaking.Unlock()
	x.writer.Store(nil)
}

// end ends the exchange, and frees what it holds.
func (x *exchange) end() {
	x.forgetWriter()
	x.clientLeft()
	if x.sessionEnded != nil {
		x.sessionEnded()
	}
	if x.idle != nil {
		x.idle.Stop()
	}
	if x.shutdown != nil {
		x.shutdown()
	}
	x.down.Stop()
	if x.resp != nil {
		x.resp.Body.Close()
		x.address.done()
	}
	x.freeHeader()
	x.cancel(nil)
}

// freeHeader gives the header of the request to the upstream back, which has been sent.
func (x *exchange) freeHeader() {
	x.route.upstream.freeHeader(x.header)
	x.header = nil
}

// run makes the exchange. ctx ends with the client, with the session and with the idle time-out.
func (x *exchange) run(ctx context.Context) error {
	body := newRequestBody(x)
	defer body.end()
	x.header = x.route.upstream.newHeader()
	x.s.upstreamHeader(x.header, x)
	out := (&http.Request{
		Method: x.r.Method, Header: x.header, ContentLength: x.r.ContentLength,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	resp, a, err := x.route.upstream.send(x, out, body)
	if err == nil && x.token.key != nil {
		resp, a, err = x.heedNonce(ctx, out, body, resp, a)
	}
	if err == nil && x.token.header != nil && !x.token.callers && rejectsToken(resp) {
		resp, a, err = x.again(ctx, out, body, resp, a)
	}
	if err != nil {
		return x.problem(ctx, body, err)
	}
	x.resp, x.address = resp, a
	if cause := context.Cause(ctx); cause != nil { // an upstream may still answer a request that it sees broken off
		return x.problem(ctx, body, cause)
	}
	switching, events := resp.StatusCode == http.StatusSwitchingProtocols, strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream")
	if switching || events {
		x.shutdown = context.AfterFunc(x.s.streaming, func() { x.breakOff(errShutdown) })
	}
	if switching || pace.IsStream(resp.Header.Get("Content-Type")) {
		body.pace().Stop()
	} else if arrived, ok := resp.Body.(interface{ Arrived() bool }); ok && arrived.Arrived() {
		x.w.boundWrites(x.s, x.r)
	} else if resp.Body != http.NoBody {
		x.down.Start(x.s.pace, x.writing.Load, x.tooSlow)
	}
	if switching {
		return x.tunnel(ctx)
	}
	x.answerHeader(ctx, body)
	if events && x.stream(ctx) {
		return nil
	}
	return x.answer(ctx, body)
}

// aim sets in a request what depends on the address that it goes to: where that is, and the proof that we may use the token there, which is another one each time
// (RFC 9449 7.3).
func (x *exchange) aim(out *http.Request, a *address) error {
	out.URL, out.Host = a.target(x.route, x.r), a.host
	if x.token.key == nil {
		return nil
	}
	_, token, _ := strings.Cut(x.token.header[0], " ")
	signed, err := dpop.Proof(x.token.key, out.Method, out.URL, token, a.nonce())
	if err != nil {
		return err
	}
	out.Header["Dpop"] = []string{signed}
	return nil
}

// heedNonce takes down the nonce that an upstream gives for the next proof, and makes the request once more if that is what it was refused for (RFC 9449 9).
func (x *exchange) heedNonce(ctx context.Context, out *http.Request, body *requestBody, resp *http.Response, a *address) (*http.Response, *address, error) {
	a.learnNonce(resp.Header)
	if !dpop.WantsNonce(resp) || !body.rewindable() {
		return resp, a, nil
	}
	resp.Body.Close()
	a.done()
	resp, a, err := x.route.upstream.send(x, out.WithContext(ctx), body) // what sent it before may still look at the other
	if err == nil {
		a.learnNonce(resp.Header)
	}
	return resp, a, err
}

// invalidToken finds the error in a challenge, quoted or not (RFC 9110 11.2).
var invalidToken = regexp.MustCompile(`(?i)\b(?:bearer|dpop)\b.*\berror *= *(?:"invalid_token"|invalid_token\b)`)

// rejectsToken says whether an upstream does not take the access token, which should be good (RFC 6750 3.1).
func rejectsToken(resp *http.Response) bool {
	if resp.StatusCode != http.StatusUnauthorized {
		return false
	}
	for _, challenge := range resp.Header["Www-Authenticate"] {
		if invalidToken.MatchString(challenge) {
			return true
		}
	}
	return false
}

// again makes a request once more, with a new token, after the upstream has rejected the one that it had: it may have been revoked, or signed with a
// key that is not in use any more. Where that cannot be done the answer is the one that there is.
func (x *exchange) again(ctx context.Context, out *http.Request, body *requestBody, resp *http.Response, a *address) (*http.Response, *address, error) {
	if !body.rewindable() {
		return resp, a, nil
	}
	token, err := x.renewToken(ctx)
	var unrefreshed *session.RefreshError
	switch {
	case errors.As(err, &unrefreshed), err == nil && (len(token.header) == 0 || token.header[0] == x.token.header[0]):
		return resp, a, nil
	case err != nil:
		resp.Body.Close()
		a.done()
		return nil, nil, err
	}
	resp.Body.Close()
	a.done()
	x.token, x.header["Authorization"] = token, token.header
	out = out.WithContext(ctx) // what sent it before may still look at it
	return x.route.upstream.send(x, out, body)
}

// renewToken returns another token than the one that was rejected, or the same where there is none.
func (x *exchange) renewToken(ctx context.Context) (accessToken, error) {
	if x.current == nil {
		return x.route.clientToken.renew(ctx, x.token)
	}
	renewed, err := x.s.sessions.RefreshRejected(ctx, x.current, x.route.targetKey)
	if err != nil {
		return accessToken{}, err
	}
	return accessToken{header: renewed.Authorization(x.route.targetKey), key: renewed.Key()}, nil
}

// target returns the URL of a request at an address: the path that was decided
// on, octet by octet, and the query as it came.
func (a *address) target(route *route, r *http.Request) *url.URL {
	raw := urlpath.Raw(r)
	if route.StripPrefix {
		raw = cutSegments(raw, strings.Count(strings.TrimSuffix(route.Path, "/"), "/"))
	}
	raw = strings.TrimSuffix(a.url.EscapedPath(), "/") + raw
	target := *a.url
	target.RawPath = raw
	target.Path, _ = url.PathUnescape(raw) // urlpath.Check has accepted it
	if target.EscapedPath() != raw {       // net/url would encode characters such as |
		target.Opaque = raw
	}
	target.RawQuery, target.ForceQuery = r.URL.RawQuery, r.URL.ForceQuery
	return &target
}

// cutSegments removes the first n segments of a path.
func cutSegments(path string, n int) string {
	for range n {
		i := strings.IndexByte(path[1:], '/')
		if i < 0 {
			return "/"
		}
		path = path[1+i:]
	}
	return path
}

// problem says what the client is to be told of an exchange that gave no answer.
func (x *exchange) problem(ctx context.Context, body *requestBody, err error) error {
	cause := context.Cause(ctx)
	x.closeUnless(body.over() && cause == nil) // breakOff has set deadlines
	var p *problem.Problem
	var timeout net.Error
	switch {
	case errors.Is(cause, session.ErrEnded):
		return session.ErrNone
	case cause == pace.ErrSlowSender:
		return problem.BodyTooSlow.WithCause(x.s.pace.Explain(cause))
	case cause == pace.ErrSlowUpload:
		return problem.UpstreamTimeout.WithCause(x.s.pace.Explain(cause))
	case errors.Is(cause, errStoodStill):
		return problem.UpstreamTimeout.WithCause(cause)
	case cause != nil: // the client has left
		return cause
	case body.err() != nil:
		return body.err()
	case errors.As(err, &p), errors.Is(err, session.ErrEnded), errors.Is(err, session.ErrNone), errors.Is(err, session.ErrStore), errors.Is(err, session.ErrUserRequired):
		return err
	case errors.As(err, &timeout) && timeout.Timeout():
		return problem.UpstreamTimeout.WithCause(err)
	}
	return problem.UpstreamFailed.WithCause(err)
}

// answerHeader puts the upstream's header into ours.
func (x *exchange) answerHeader(ctx context.Context, body *requestBody) {
	h := x.w.Header()
	x.s.copyHeader(h, x.resp.Header, x.route, x.address)
	if x.resp.StatusCode == http.StatusUnauthorized {
		h["Www-Authenticate"] = withoutDialogue(h["Www-Authenticate"])
	}
	if hasNoBody(x.resp.StatusCode) {
		delete(h, "Content-Length") // RFC 9110, section 8.6
	}
	if x.resp.StatusCode == http.StatusResetContent {
		h["Content-Length"] = []string{"0"} // which HTTP/1.1 needs to see its end
	}
	if x.route.Documents != "allow" {
		sandbox(h, x.resp.StatusCode)
	}
	if x.current != nil && x.s.renewCookie(ctx, x.w, x.r, x.current) {
		notCached(h)
	}
	x.closeUnless(body.over())
}

// answer gives the upstream's answer to the client, as it comes.
func (x *exchange) answer(ctx context.Context, body *requestBody) error {
	x.w.WriteHeader(x.resp.StatusCode)
	if hasNoBody(x.resp.StatusCode) {
		return nil
	}
	if x.resp.ContentLength < 0 || !body.over() {
		x.w.Flush() // it may be a while until there is more
	}
	if err := x.moveAnswer(ctx, x.w); err != nil {
		x.brokeOff(ctx, err)
		panic(http.ErrAbortHandler) // the client must not take what it has for all
	}
	for name, values := range x.resp.Trailer {
		if trailerAllowed(name) && len(values) > 0 {
			x.w.Header()[http.TrailerPrefix+name] = values
		}
	}
	return nil
}

// moveAnswer moves the answer's body to w. An upstream that sees its connection closed because the exchange is over can seem to have said all.
func (x *exchange) moveAnswer(ctx context.Context, w io.Writer) error {
	return cmp.Or(x.move(w, x.resp.Body, x.resp.ContentLength), context.Cause(ctx))
}

// tooSlow ends an exchange whose response does not move.
func (x *exchange) tooSlow(client bool) {
	if client {
		x.breakOff(pace.ErrSlowReader)
	} else {
		x.breakOff(pace.ErrSlowDownload)
	}
}

// brokeOff has it logged that an answer broke off, unless that was the client's doing, or the session's end.
func (x *exchange) brokeOff(ctx context.Context, err error) {
	switch cause := context.Cause(ctx); cause {
	case nil, errStoodStill:
		x.w.problem = problem.UpstreamFailed.WithCause(fmt.Errorf("the answer broke off: %w", cmp.Or(cause, err)))
	case pace.ErrSlowDownload, pace.ErrSlowUpload:
		x.w.problem = problem.UpstreamFailed.WithCause(x.s.pace.Explain(cause))
	case pace.ErrSlowReader, pace.ErrSlowSender:
		x.w.problem = problem.BodyTooSlow.WithCause(x.s.pace.Explain(cause))
	}
}

// closeUnless has the client's connection closed after the answer unless its request is over: what remains of a body must not be taken for the next one.
func (x *exchange) closeUnless(over bool) {
	if !over && x.r.ProtoMajor == 1 {
		x.w.Header()["Connection"] = []string{"close"}
	}
}

const smallBuffer, largeBuffer = 1 << 9, 32 << 10

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

// move moves all of from to w, each part as soon as it is there. It waits with a small buffer, for most streams are idle most of the time, and uses a large
// one while much is coming. length is how much that will be, -1 if nobody knows.
func (x *exchange) move(w io.Writer, from io.Reader, length int64) error {
	if length == 0 {
		return nil
	}
	small, large := smallBuffers.Get().(*[smallBuffer]byte), (*[largeBuffer]byte)(nil)
	defer smallBuffers.Put(small)
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()
	flusher, _ := w.(interface{ Flush() })
	for much := length > smallBuffer; ; {
		buf := small[:]
		if much && large == nil {
			large = largeBuffers.Get().(*[largeBuffer]byte)
		} else if !much && large != nil {
			largeBuffers.Put(large)
			large = nil
		}
		if large != nil {
			buf = large[:]
		}
		n, err := from.Read(buf)
		if x.idle != nil {
			x.idle.Reset(x.route.Timeouts.Idle)
		}
		if n > 0 {
			x.writing.Store(true)
			_, err := w.Write(buf[:n])
			x.writing.Store(false)
			if err != nil {
				return err
			}
			x.down.Add(n)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if flusher != nil {
			x.writing.Store(true)
			flusher.Flush()
			x.writing.Store(false)
		}
		much = n > smallBuffer/2
	}
}

// tunnel joins the client's connection and the upstream's after a switch of protocols, until both sides have ended, or either fails, or ctx ends.
func (x *exchange) tunnel(ctx context.Context) error {
	upstream, ok := x.resp.Body.(io.ReadWriteCloser)
	if upgrade := x.resp.Header["Upgrade"]; !ok || len(x.r.Header["Upgrade"]) == 0 || len(upgrade) != 1 || !strings.EqualFold(upgrade[0], "websocket") {
		return problem.UpstreamFailed.WithCause(fmt.Errorf("it switches to the protocol %.40q", upgrade))
	}
	h := x.w.Header()
	x.s.copyHeader(h, x.resp.Header, x.route, x.address)
	h["Upgrade"], h["Connection"] = []string{"websocket"}, []string{"Upgrade"}
	client, buffered, err := x.writer.Load().Hijack()
	if err != nil {
		return problem.UpgradeRefused.WithCause(err)
	}
	defer client.Close()
	x.clientLeft() // the server takes a client that has only stopped sending for one that has left
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		upstream.Close()
	})
	defer stop()
	client.SetDeadline(time.Time{}) // the server's
	x.w.status = http.StatusSwitchingProtocols
	head := http.Response{StatusCode: x.w.status, ProtoMajor: 1, ProtoMinor: 1, Header: h}
	if head.Write(client) != nil {
		return nil // the client has left
	}
	var up error
	var moving sync.WaitGroup
	moving.Go(func() { // until the client, or either connection, ends
		if up = x.move(upstream, buffered, -1); up == nil {
			up = closeWrite(upstream)
		}
		if up != nil {
			client.Close()
		}
	})
	down := x.move(&counted{client, x.w}, upstream, -1)
	if down == nil {
		down = closeWrite(client)
	}
	if down != nil {
		upstream.Close()
		client.Close()
	}
	moving.Wait()
	return nil
}

// closeWrite tells a peer that nothing more will come.
func closeWrite(c any) error {
	if c, ok := c.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.New("it cannot be closed half")
}

// counted counts what is written for the log.
type counted struct {
	io.Writer
	w *response
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.w.bytes += int64(n)
	return n, err
}

// requestBody is a request's body on its way to the upstream, for which there may be more than one try. A nil one has nothing in it.
type requestBody struct {
	x  *exchange
	up pace.Monitor

	mu      sync.Mutex // guards all below
	waiting *sync.Cond // signals that reading has ended
	try     int        // its readers are those of this try; those of earlier ones get nothing any more
	reading bool       // from the client
	kept    []byte     // its beginning, while that is not too long
	lost    bool       // it was too long
	at      int64      // how much of the body this try has had
	read    int64
	failed  error // why there is no more of it, io.EOF for its end
}

// keptBody is how much of a body is kept.
const keptBody = 64 << 10

func newRequestBody(x *exchange) *requestBody {
	if x.r.Body == nil || x.r.Body == http.NoBody {
		return nil
	}
	x.writer.Load().EnableFullDuplex() // an upstream may answer before it has all of the body
	b := &requestBody{x: x}
	b.waiting = sync.NewCond(&b.mu)
	return b
}

// reader returns the body from its beginning, for one try, or false if that is not to be had any more. What an earlier try is still reading from the client is
// for this one.
func (b *requestBody) reader() (io.ReadCloser, bool) {
	if b == nil {
		return http.NoBody, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost {
		return nil, false
	}
	b.try++
	b.at = 0
	b.waiting.Broadcast() // for the readers of earlier tries
	return &bodyReader{requestBody: b, try: b.try}, true
}

// pace returns what watches the body on its way to the upstream.
func (b *requestBody) pace() *pace.Monitor {
	if b == nil {
		return new(pace.Monitor)
	}
	return &b.up
}

// tooSlow ends an exchange whose request body does not move.
func (b *requestBody) tooSlow(client bool) {
	if client {
		b.x.breakOff(pace.ErrSlowSender)
	} else {
		b.x.breakOff(pace.ErrSlowUpload)
	}
}

// isReading reports whether the client is waited for.
func (b *requestBody) isReading() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reading
}

// getBody is http.Request.GetBody, with which http.Transport repeats what the
// server has refused or left out: a body of up to keptBody bytes.
func (b *requestBody) getBody() (io.ReadCloser, error) {
	reader, ok := b.reader()
	if !ok {
		return nil, errNotKept
	}
	return reader, nil
}

// rewindable says whether there could be a reader now.
func (b *requestBody) rewindable() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.lost
}

// bodyReader reads a body for one try.
type bodyReader struct {
	*requestBody
	try     int
	watched bool // by up; of Read alone
}

var (
	errLateReader = errors.New("the body is being read for another try")
	errNotKept    = fmt.Errorf("the body is longer than %d bytes and cannot be sent again", keptBody)
)

func (r *bodyReader) Read(p []byte) (int, error) {
	b := r.requestBody
	if !r.watched {
		r.watched = true
		b.up.Start(b.x.s.pace, b.isReading, b.tooSlow)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.reading && b.try == r.try && b.at >= int64(len(b.kept)) {
		b.waiting.Wait() // for the reader of an earlier try
	}
	switch {
	case b.try != r.try:
		return 0, errLateReader
	case b.at < int64(len(b.kept)):
		n := copy(p, b.kept[b.at:])
		b.at += int64(n)
		return n, nil
	case b.failed != nil:
		return 0, b.failed
	case b.at < b.read: // an earlier try has read too much of it
		return 0, errNotKept
	}
	b.reading = true
	b.mu.Unlock()
	n, err := b.x.r.Body.Read(p)
	b.up.Add(n)
	if b.x.idle != nil {
		b.x.idle.Reset(b.x.route.Timeouts.Idle)
	}
	b.mu.Lock()
	b.reading = false
	b.read += int64(n)
	if limit := b.x.route.MaxBody; limit > 0 && b.read > limit {
		n, err = 0, problem.BodyTooLarge.WithCause(fmt.Errorf("it has more than %d bytes", limit))
	} else if err != nil && err != io.EOF {
		err = problem.BadBody.WithCause(err)
	}
	b.failed = err
	current := b.try == r.try
	if b.lost = b.lost || len(b.kept)+n > keptBody || b.x.r.ContentLength > keptBody; b.lost {
		b.kept = nil
	} else {
		b.kept = append(b.kept, p[:n]...)
	}
	b.waiting.Broadcast()
	if !current {
		return 0, errLateReader
	}
	b.at += int64(n)
	return n, err
}

// Close notes that the upstream has the body, or will get no more of it. Whether it is read again is not for a transport to say.
func (r *bodyReader) Close() error {
	r.mu.Lock()
	current := r.requestBody.try == r.try
	r.mu.Unlock()
	if current {
		r.up.Stop()
	}
	return nil
}

// err returns why the body could not be read; nil if it could, or has not been.
func (b *requestBody) err() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failed == io.EOF {
		return nil
	}
	return b.failed
}

// over reports whether all of the body has been read. One of which the rest is
// not wanted is not over: net/http looks for its end when the handler has
// returned, and in full duplex cannot use the connection after that.
func (b *requestBody) over() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed == io.EOF
}

// end lets nobody read the body any more: the upstream has answered without it, and the client is not waited for.
func (b *requestBody) end() {
	b.pace().Stop()
	if !b.over() {
		b.x.writer.Load().SetReadDeadline(time.Now())
	}
}
