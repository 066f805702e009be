package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/cancel"
	"github.com/cloakroom-bff/cloakroom/internal/dpop"
	"github.com/cloakroom-bff/cloakroom/internal/hijack"
	"github.com/cloakroom-bff/cloakroom/internal/http1"
	"github.com/cloakroom-bff/cloakroom/internal/pace"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// exchange is one request on its way to the upstream, and the response on its
// way back.
type exchange struct {
	p          *Proxy
	w          http.ResponseWriter
	r          *http.Request
	opts       Options
	body       *requestBody // of r; nil: it is empty
	credential Credential   // nil: none
	record     *Record
	idle       *time.Timer // nil: no idle timeout
	ctx        cancel.Context
	download   pace.Monitor // of the response's body
	writing    atomic.Bool  // to the client
	detached   bool         // it continues after Forward has returned

	withoutSlash bool // the path is sent without the slash at its end

	aborting   sync.Mutex                              // held while abort uses conn
	conn       atomic.Pointer[http.ResponseController] // the client's connection; nil once it is not ours
	controller http.ResponseController                 // what conn points to

	// What end releases; nil before it is there.
	clientLeft cancel.Registration
	stopOnEnd  func()
	streaming  bool // among Group.streams
	address    *address
	resp       *http.Response
	out        http.Request  // the first request to the upstream, without header
	fields     *http1.Fields // of the requests to the upstream
	uncredited int           // length of those without a credential

	span trace.Span // nil: there are no traces
	url  *url.URL   // of the last request to the upstream; nil: none yet
}

var (
	// errShutdown aborts a stream because the server shuts down.
	errShutdown = errors.New("the server shuts down")
	// errIdleTimeout aborts an exchange without data for Timeouts.Idle.
	errIdleTimeout = errors.New("nothing moved for the idle timeout")
)

// abortGrace is how long a client may take to read how its request ended.
const abortGrace = time.Second

// abort ends the exchange for a cause. It also interrupts a read from or a
// write to the client, whose connection is closed then.
func (x *exchange) abort(cause error) {
	x.ctx.Cancel(cause)
	x.aborting.Lock()
	defer x.aborting.Unlock()
	if conn := x.conn.Load(); conn != nil {
		if !x.body.complete() { // net/http would take the client for gone, for the next request too
			conn.SetReadDeadline(time.Now())
		}
		conn.SetWriteDeadline(time.Now().Add(abortGrace))
	}
}

func (x *exchange) abortEnded() { x.abort(ErrEnded) }

// releaseConn keeps abort from using the client's connection, which is the
// server's again once the handler has returned.
func (x *exchange) releaseConn() {
	x.aborting.Lock() // waits for an abort that is running
	defer x.aborting.Unlock()
	x.conn.Store(nil)
	x.controller = http.ResponseController{} // a stream must not keep the buffers of net/http
}

// end releases what the exchange holds.
func (x *exchange) end() {
	x.releaseConn()
	x.clientLeft.Stop()
	if x.stopOnEnd != nil {
		x.stopOnEnd()
	}
	if x.idle != nil {
		x.idle.Stop()
	}
	if x.streaming {
		x.p.group.removeStream(x)
	}
	x.download.Stop()
	if x.resp != nil {
		x.resp.Body.Close()
		x.address.release()
	}
	x.freeFields()
	x.ctx.Cancel(nil)
}

// freeFields releases the fields of the request, which has been sent.
func (x *exchange) freeFields() {
	if x.fields != nil && x.fields.Len() <= maxPooledFields {
		fields.Put(x.fields)
	}
	x.fields = nil
}

// run sends the request and copies the response. ctx is canceled if the client
// leaves, or by abort.
func (x *exchange) run(ctx context.Context) error {
	body := x.body
	defer body.end()
	resp, a, err := x.request(ctx, body)
	if err != nil {
		return x.problem(ctx, body, err)
	}
	x.resp, x.address = resp, a
	if cause := context.Cause(ctx); cause != nil { // an upstream may respond to a request that was aborted
		return x.problem(ctx, body, cause)
	}
	if x.p.PublicFiles && resp.StatusCode >= 500 {
		return problem.UpstreamFailed.WithCause(fmt.Errorf("the status is %d", resp.StatusCode))
	}
	contentType := resp.Header.Get("Content-Type")
	switching := resp.StatusCode == http.StatusSwitchingProtocols
	events := strings.HasPrefix(contentType, "text/event-stream") && !hasNoBody(resp.StatusCode)
	if switching || events {
		x.streaming, x.record.Stream = true, true
		x.p.group.addStream(x)
	}
	if switching || pace.IsStream(contentType) {
		body.stopPace()
	} else if _, ok := arrived(resp.Body); ok {
		x.limitWrites()
	} else if resp.Body != http.NoBody {
		x.download.Start(x.p.group.pace(), x.writing.Load, x.tooSlow)
	}
	if switching {
		return x.tunnel(ctx)
	}
	x.copyResponseHeader(body)
	if events && x.stream(ctx) {
		return nil
	}
	return x.copyResponse(ctx, body)
}

// request sends the request, once more if that helps, and returns the response
// and the address that sent it.
func (x *exchange) request(ctx context.Context, body *requestBody) (*http.Response, *address, error) {
	x.fields = x.requestFields(ctx)
	x.uncredited = x.fields.Len()
	x.out = *(&http.Request{
		Method: x.r.Method, ContentLength: x.r.ContentLength, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	out := &x.out
	resp, a, err := x.p.servers.send(x, out, body)
	if err == nil && x.credential != nil && x.credential.Key() != nil {
		resp, a, err = x.retryWithNonce(ctx, out, body, resp, a)
	}
	if err == nil && x.credential != nil && rejectsToken(resp) {
		resp, a, err = x.retryWithNewToken(ctx, out, body, resp, a)
	}
	if err == nil && x.removesSlash(resp, a) {
		resp, a, err = x.retryWithoutSlash(ctx, out, body, resp, a)
	}
	return resp, a, err
}

// limitWrites bounds how long a response takes that has arrived already.
func (x *exchange) limitWrites() {
	if !x.record.Deadline {
		x.record.Deadline = true
		x.p.group.pace().LimitWrites(x.conn.Load(), x.r)
	}
}

// prepareFor sets in a request what depends on the address that it goes to: the
// URL, the Host and the DPoP proof.
func (x *exchange) prepareFor(out *http.Request, a *address) error {
	out.URL, out.Host = x.target(a), a.host
	x.url = out.URL
	x.fields.Truncate(x.uncredited)
	return x.addCredential(x.fields, out, a)
}

// retryWithNonce stores the nonce of a response for the next proof. It retries
// once if the response is the error use_dpop_nonce (RFC 9449, section 9).
func (x *exchange) retryWithNonce(
	ctx context.Context, out *http.Request, body *requestBody, resp *http.Response, a *address,
) (*http.Response, *address, error) {
	a.learnNonce(resp.Header)
	if !dpop.WantsNonce(resp) || !body.rewindable() {
		return resp, a, nil
	}
	resp.Body.Close()
	a.release()
	x.record.Retries++
	resp, a, err := x.p.servers.send(x, out.WithContext(ctx), body) // the transport may still read out
	if err == nil {
		a.learnNonce(resp.Header)
	}
	return resp, a, err
}

// invalidToken matches the error in a challenge, quoted or not (RFC 9110,
// section 11.2).
var invalidToken = regexp.MustCompile(`(?i)\b(?:bearer|dpop)\b.*\berror *= *(?:"invalid_token"|invalid_token\b)`)

// rejectsToken reports whether an upstream rejects the access token (RFC 6750,
// section 3.1).
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

// retryWithNewToken retries a request after the upstream has rejected its
// token. The token may have been revoked, or signed with a key that is no
// longer in use. If there is no other token, or the body cannot be sent again,
// resp stands.
func (x *exchange) retryWithNewToken(
	ctx context.Context, out *http.Request, body *requestBody, resp *http.Response, a *address,
) (*http.Response, *address, error) {
	if !body.rewindable() {
		return resp, a, nil
	}
	renewed, err := x.credential.Renew(ctx)
	if err == nil && renewed == nil {
		return resp, a, nil
	}
	resp.Body.Close()
	a.release()
	if err != nil {
		return nil, nil, &renewError{err}
	}
	x.record.Retries++
	x.credential = renewed
	return x.p.servers.send(x, out.WithContext(ctx), body) // the transport may still read out
}

// renewError is an error of Credential.Renew.
type renewError struct{ error }

// removesSlash reports whether a response redirects a request for the path of
// the proxy, such as /orders/, to the same path without the slash at its end.
// There the browser would not reach this proxy. So location adds the slash, and
// the browser would be redirected to where it is.
func (x *exchange) removesSlash(resp *http.Response, a *address) bool {
	switch resp.StatusCode {
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther:
		if x.r.Method != http.MethodGet && x.r.Method != http.MethodHead { // a client sends GET then
			return false
		}
	default:
		return false
	}
	if !strings.HasSuffix(x.p.Path, "/") || x.r.URL.Path != x.p.Path || x.url.EscapedPath() == "/" {
		return false
	}
	to, err := x.url.Parse(resp.Header.Get("Location"))
	if err != nil || strings.HasSuffix(to.Path, "/") || to.RawQuery != x.url.RawQuery {
		return false
	}
	to = &url.URL{Scheme: to.Scheme, Host: to.Host, Path: to.Path, RawPath: to.RawPath}
	x.address = a
	return x.location(to.String()) == x.p.urlPath
}

// retryWithoutSlash follows the redirect that removesSlash reports.
func (x *exchange) retryWithoutSlash(
	ctx context.Context, out *http.Request, body *requestBody, resp *http.Response, a *address,
) (*http.Response, *address, error) {
	if !body.rewindable() {
		return resp, a, nil
	}
	resp.Body.Close()
	a.release()
	x.record.Retries++
	x.withoutSlash = true
	return x.p.servers.send(x, out.WithContext(ctx), body) // the transport may still read out
}

// target returns the URL of the request at an address: the path that was
// decided on, octet by octet, and the query as it came.
func (x *exchange) target(a *address) *url.URL {
	raw := urlpath.Raw(x.r)
	if x.p.StripPrefix {
		raw = cutSegments(raw, strings.Count(strings.TrimSuffix(x.p.Path, "/"), "/"))
	}
	raw = strings.TrimSuffix(a.url.EscapedPath(), "/") + raw
	if x.withoutSlash {
		raw = strings.TrimSuffix(raw, "/")
	}
	if raw == "" {
		raw = "/"
	}
	target := *a.url
	target.RawPath = raw
	target.Path, _ = url.PathUnescape(raw) // urlpath.Check has accepted it
	if target.EscapedPath() != raw {       // net/url would encode characters such as |
		target.Opaque = raw
	}
	target.RawQuery, target.ForceQuery = x.r.URL.RawQuery, x.r.URL.ForceQuery
	return &target
}

// cutSegments removes the first n segments of a path. The result is empty if
// there are no others.
func cutSegments(path string, n int) string {
	for range n {
		i := strings.IndexByte(path[1:], '/')
		if i < 0 {
			return ""
		}
		path = path[1+i:]
	}
	return path
}

// problem returns the error of an exchange without a response.
func (x *exchange) problem(ctx context.Context, body *requestBody, err error) error {
	cause := context.Cause(ctx)
	x.setConnectionClose(body.complete() && cause == nil) // abort has set deadlines
	var p *problem.Problem
	var renew *renewError
	var timeout net.Error
	switch {
	case cause == pace.ErrSlowSender:
		return problem.BodyTooSlow.WithCause(x.p.group.pace().Explain(cause))
	case cause == pace.ErrSlowUpload:
		return problem.UpstreamTimeout.WithCause(x.p.group.pace().Explain(cause))
	case cause == errIdleTimeout:
		return problem.UpstreamTimeout.WithCause(cause)
	case cause != nil: // the client has left, or ErrEnded
		return cause
	case body.err() != nil:
		return body.err()
	case errors.As(err, &renew):
		return renew.error
	case errors.As(err, &p):
		return err
	case errors.As(err, &timeout) && timeout.Timeout():
		return problem.UpstreamTimeout.WithCause(err)
	}
	return problem.UpstreamFailed.WithCause(err)
}

// copyResponseHeader sets the header of the response.
func (x *exchange) copyResponseHeader(body *requestBody) {
	h := x.w.Header()
	x.copyHeader(h, x.resp.Header)
	if x.resp.StatusCode == http.StatusUnauthorized && len(h["Www-Authenticate"]) > 0 {
		h["Www-Authenticate"] = dropBrowserAuth(h["Www-Authenticate"])
	}
	if hasNoBody(x.resp.StatusCode) {
		delete(h, "Content-Length") // RFC 9110, section 8.6
	}
	if x.resp.StatusCode == http.StatusResetContent {
		h["Content-Length"] = []string{"0"} // which HTTP/1.1 needs to see its end
	}
	if !x.p.AllowDocuments {
		sandbox(h, x.resp.StatusCode)
	}
	if before := x.p.group.BeforeResponse; before != nil {
		cookies := len(h["Set-Cookie"])
		before(x.w, x.r)
		if len(h["Set-Cookie"]) > cookies {
			setNoStore(h)
		}
	}
	x.setConnectionClose(body.complete())
}

// copyResponse sends the response as it arrives.
func (x *exchange) copyResponse(ctx context.Context, body *requestBody) error {
	x.w.WriteHeader(x.resp.StatusCode)
	if hasNoBody(x.resp.StatusCode) {
		return nil
	}
	if !body.complete() {
		x.conn.Load().Flush() // the body may take a while
	}
	if err := x.copyBody(ctx, x.w); err != nil {
		if x.record.Stream && endsEvents(context.Cause(ctx)) {
			return nil
		}
		x.recordAbort(ctx, err)
		x.resetHTTP10()
		panic(http.ErrAbortHandler) // the client must not take what it has for complete
	}
	if len(x.resp.Trailer) > 0 {
		x.conn.Load().Flush() // otherwise net/http would send a Content-Length, and no trailer
	}
	for name, values := range x.resp.Trailer {
		if trailerAllowed(name) && len(values) > 0 {
			x.w.Header()[http.TrailerPrefix+name] = values
		}
	}
	return nil
}

// resetHTTP10 resets the connection of a client in HTTP/1.0 if the response has
// no length. Such a client takes the end of the connection for that of the
// response, and an orderly end for a complete one.
func (x *exchange) resetHTTP10() {
	if x.r.ProtoMajor != 1 || x.r.ProtoMinor != 0 || len(x.w.Header()["Content-Length"]) > 0 {
		return
	}
	x.body.end()
	if client, _, err := x.conn.Load().Hijack(); err == nil {
		hijack.Reset(client)
	}
}

// tooSlow aborts an exchange whose response moves too slowly. client reports
// whether it waited for the client.
func (x *exchange) tooSlow(client bool) {
	if client {
		x.abort(pace.ErrSlowReader)
	} else {
		x.abort(pace.ErrSlowDownload)
	}
}

// recordAbort records why a response ended too early, unless the client or the
// session ended it.
func (x *exchange) recordAbort(ctx context.Context, err error) {
	switch cause := context.Cause(ctx); cause {
	case nil:
		x.record.Err = problem.UpstreamFailed.WithCause(fmt.Errorf("the response ended too early: %w", err))
	case errIdleTimeout:
		x.record.Err = problem.UpstreamFailed.WithCause(fmt.Errorf("the response ended too early: %w", cause))
	case pace.ErrSlowDownload, pace.ErrSlowUpload:
		x.record.Err = problem.UpstreamFailed.WithCause(x.p.group.pace().Explain(cause))
	case pace.ErrSlowReader, pace.ErrSlowSender:
		x.record.Err = problem.BodyTooSlow.WithCause(x.p.group.pace().Explain(cause))
	}
}

// setConnectionClose has the client's connection closed after the response
// unless the request is complete: the rest of its body must not be read as the
// next request.
func (x *exchange) setConnectionClose(complete bool) {
	if !complete && x.r.ProtoMajor == 1 {
		x.w.Header()["Connection"] = []string{"close"}
	}
}
