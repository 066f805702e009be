package bff_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// probe is a request whose response can be told from that of any other.
type probe struct {
	method  string
	nonce   string
	body    []byte
	chunked bool
	more    int // bytes of the response after its first line
}

// echoNonce is the handler of an upstream that responds to probes.
func echoNonce(rw http.ResponseWriter, r *http.Request) {
	got, err := checksum(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	first := fmt.Sprintf("%s %s\n", r.Header.Get("X-Nonce"), got)
	rw.Header().Set("X-Nonce", r.Header.Get("X-Nonce"))
	rw.Header().Set("Content-Type", "application/octet-stream")
	more, _ := strconv.Atoi(r.URL.Query().Get("more"))
	if more%2 == 0 {
		rw.Header().Set("Content-Length", strconv.Itoa(len(first)+more))
	}
	if r.Method != "HEAD" {
		io.WriteString(rw, first)
		rw.Write(block[:more])
	}
}

func (p *probe) request(t *testing.T, w *protocolPair) *http.Request {
	var body io.Reader
	if p.body != nil {
		body = bytes.NewReader(p.body)
		if p.chunked {
			body = struct{ io.Reader }{body}
		}
	}
	return w.request(t, p.method, "x?more="+strconv.Itoa(p.more), body, "X-Nonce", p.nonce)
}

// send sends the probe and checks the response.
func (p *probe) send(t *testing.T, w *protocolPair) error { return p.do(w, p.request(t, w)) }

func (p *probe) do(w *protocolPair, req *http.Request) error {
	resp, err := w.client.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", p.method, p.nonce, err)
	}
	defer resp.Body.Close()
	return p.check(resp)
}

// early is the response of an upstream that has not read the request.
const early = "early"

// errMixedUp is the error of a request that got the response to another one.
var errMixedUp = errors.New("response to another request")

// check reads the response and checks that it is that of the probe.
func (p *probe) check(resp *http.Response) error {
	text, err := io.ReadAll(resp.Body)
	got := fmt.Sprintf("%s %s: got %d %v %.200q", p.method, p.nonce, resp.StatusCode, resp.Header, text)
	switch sum, _ := checksum(bytes.NewReader(p.body)); {
	case resp.StatusCode == 502 && resp.Header.Get("X-Nonce") == "":
		return errors.New(got)
	case resp.StatusCode != 200 || resp.Header.Get("X-Nonce") != p.nonce:
		return fmt.Errorf("%w: %s", errMixedUp, got)
	case err != nil:
		return fmt.Errorf("%s: %w", got, err)
	case p.method == "HEAD" && len(text) == 0, string(text) == early:
	case string(text) != fmt.Sprintf("%s %s\n%s", p.nonce, sum, block[:p.more]):
		return fmt.Errorf("%w: %s", errMixedUp, got)
	}
	return nil
}

// newProbe returns a random probe.
func newProbe(random *rand.Rand, nonce string) *probe {
	p := &probe{method: []string{"GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE"}[random.IntN(7)], nonce: nonce}
	size := func() int { return random.IntN(1 << (1 + random.IntN(16))) }
	if p.method == "POST" || p.method == "PUT" {
		start := random.IntN(1 << 19)
		p.body, p.chunked = block[start:start+size()], random.IntN(2) == 0
	}
	p.more = size()
	return p
}

func TestResponsesOnOneConnectionAreInOrder(t *testing.T) {
	eachUpstreamProtocol(t, 1, func(t *testing.T, w *protocolPair) {
		w.handle(echoNonce)
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		c, r := w.dial(t)
		for i := range 50 {
			p := newProbe(random, fmt.Sprint("request ", i))
			req := p.request(t, w)
			if err := req.Write(c); err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			resp, err := http.ReadResponse(r, req)
			if err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			if err := p.check(resp); err != nil {
				t.Fatal(err)
			}
			if resp.Close {
				t.Fatalf("%s of %d bytes, chunked %v: got Connection: close", p.method, len(p.body), p.chunked)
			}
		}
		// A connection is not reused if the response came before the end of the
		// request was recorded.
		if got := w.conns.Load(); got > 10 {
			t.Errorf("connections to the upstream: got %d, want at most 10", got)
		}
	})
}

// runClients makes many clients send probes to some protocol pairs. Some
// requests are aborted. With faulty, a request may have no response or a 502.
// runClients returns the number of responses.
func runClients(
	t *testing.T, clients, requests int, faulty bool, pairs ...*protocolPair,
) (responses int64) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var good, aborted atomic.Int64
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			w := pairs[i%len(pairs)]
			for j := range requests {
				p := newProbe(random, fmt.Sprintf("%d of client %d", j, i))
				req := p.request(t, w)
				n := random.IntN(10)
				abort := n <= 1
				switch {
				case n == 0 && p.body != nil: // during the request
					req.Body = io.NopCloser(io.MultiReader(bytes.NewReader(p.body), iotest.ErrReader(errDisconnect)))
					req.ContentLength, req.GetBody = -1, nil
				case abort: // during the response, or before it
					ctx, cancel := context.WithCancel(req.Context())
					req = req.WithContext(ctx)
					time.AfterFunc(time.Duration(random.IntN(2000))*time.Microsecond, cancel)
				}
				err := p.do(w, req)
				switch {
				case errors.Is(err, errMixedUp):
					t.Error(err)
					return
				case abort, errors.Is(err, errDisconnect):
					// http.Transport gives a connection away before it returns
					// a response without a body: the next request can break it.
					aborted.Add(1)
				case err == nil:
					good.Add(1)
				case !faulty:
					t.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
	t.Logf("%d requests: %d responses, %d aborted", clients*requests, good.Load(), aborted.Load())
	return good.Load()
}

// errDisconnect is the error of a body whose client disconnects.
var errDisconnect = errors.New("the client disconnects")

func TestConcurrentClientsGetTheirOwnResponses(t *testing.T) {
	testenv.Slow(t)
	eachProtocolPair(t, func(t *testing.T, w *protocolPair) {
		w.handle(echoNonce)
		requests := 200
		if raceDetector && (w.browser != 1 || w.protocol.scheme != "http") {
			requests = 10
		}
		runClients(t, 64, requests, false, w)
	})
}

// serveFaulty is an upstream that responds to probes, with faults now and then.
func serveFaulty(l net.Listener) {
	seed := uint64(time.Now().UnixNano())
	for n := uint64(1); ; n++ {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() { // until the connection is closed
			defer c.Close()
			c.SetDeadline(time.Now().Add(2 * testTimeout))
			random := rand.New(rand.NewPCG(seed, n))
			for r := bufio.NewReader(c); respondFaulty(c, r, random); {
			}
		}()
	}
}

// respondFaulty responds to one request, and reports whether the connection
// stays open.
func respondFaulty(c net.Conn, r *bufio.Reader, random *rand.Rand) bool {
	req, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	const (
		closeAtOnce = iota
		earlyAndClose
		earlyAndReadOn
		closeAfterRequest
		announceClose
		announceCloseOnly // and keep the connection open
		extraResponse
		extraBytes
		truncate
		lateCRLF
		faults = 20 // half of the responses have none
	)
	nonce := req.Header.Get("X-Nonce")
	fault := random.IntN(faults)
	switch fault {
	case closeAtOnce:
		return false
	case earlyAndClose, earlyAndReadOn:
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Nonce: %s\r\nContent-Length: 5\r\n\r\n%s", nonce, early)
		if fault == earlyAndClose {
			return false
		}
		_, err := io.Copy(io.Discard, req.Body)
		return err == nil
	}
	got, err := checksum(req.Body)
	if err != nil || fault == closeAfterRequest {
		return false
	}
	more, _ := strconv.Atoi(req.URL.Query().Get("more"))
	body := fmt.Sprintf("%s %s\n%s", nonce, got, block[:more])
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 200 OK\r\nX-Nonce: %s\r\n", nonce)
	if fault == announceClose || fault == announceCloseOnly {
		b.WriteString("Connection: close\r\n")
	}
	if more%2 == 0 || req.Method == "HEAD" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n", len(body))
	} else {
		b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		body = fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	}
	if req.Method != "HEAD" {
		b.WriteString(body)
	}
	switch {
	case b.Len() > 8<<10:
		// What follows in another TLS record may arrive after the next request,
		// and then it cannot be told from its response.
	case fault == extraResponse:
		b.WriteString("HTTP/1.1 200 OK\r\nX-Nonce: nobody's\r\nContent-Length: 8\r\n\r\nnobody's")
	case fault == extraBytes:
		b.WriteString("nobody's")
	}
	if fault == truncate {
		b.Truncate(b.Len() - 1 - random.IntN(b.Len()-1))
	}
	if _, err := c.Write(b.Bytes()); err != nil {
		return false
	}
	if fault == lateCRLF {
		io.WriteString(c, "\r\n")
	}
	return fault != announceClose && fault != truncate
}

func TestFaultyUpstreamCausesNoMixedUpResponses(t *testing.T) {
	testenv.Slow(t)
	plain, overTLS := listen(t), listen(t)
	f := newProtocolServer(t, func(f *protocolServer, cfg *bff.Config) {
		cfg.Routes = append(cfg.Routes,
			f.route("/faulty/", "http://"+plain.Addr().String()),
			f.route("/faulty-tls/", "https://"+overTLS.Addr().String()))
	})
	log.SetOutput(io.Discard) // http.Transport logs unsolicited responses there
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
	go serveFaulty(plain) // both until their listener is closed
	go serveFaulty(tls.NewListener(overTLS, &tls.Config{Certificates: f.pairs[1].upstream.TLS.Certificates}))
	for _, path := range []string{"/faulty/", "/faulty-tls/"} {
		var pairs []*protocolPair
		for _, browser := range []int{1, 2} {
			pairs = append(pairs, &protocolPair{
				protocolServer: f, browser: browser, client: f.newClient(t, browser), path: path,
			})
		}
		requests := 200
		if raceDetector {
			requests = map[string]int{"/faulty/": 60, "/faulty-tls/": 15}[path] // TLS handshakes take time
		}
		// With few responses the test would prove little.
		if got, want := runClients(t, 64, requests, true, pairs...), int64(64*requests/3); got < want {
			t.Errorf("%s: got %d responses to %d requests, want at least %d", path, got, 64*requests, want)
		}
	}
}
