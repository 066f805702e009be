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
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// probe is a request whose answer is its own and nobody else's.
type probe struct {
	method  string
	nonce   string
	body    []byte
	chunked bool
	more    int // how many bytes come behind the answer's first line
}

// echoNonce answers a probe.
func echoNonce(rw http.ResponseWriter, r *http.Request) {
	got, err := summary(r.Body)
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

func (p *probe) request(t *testing.T, w *way) *http.Request {
	var body io.Reader
	if p.body != nil {
		body = bytes.NewReader(p.body)
		if p.chunked {
			body = struct{ io.Reader }{body}
		}
	}
	return w.request(t, p.method, "x?more="+strconv.Itoa(p.more), body, "X-Nonce", p.nonce)
}

func (p *probe) ask(w *way, req *http.Request) error {
	resp, err := w.client.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", p.method, p.nonce, err)
	}
	defer resp.Body.Close()
	return p.check(resp)
}

// early is the answer of an upstream that has not read the request.
const early = "early"

// errOthers says that a request got an answer that was for another one.
var errOthers = errors.New("the answer is another request's")

// check reads an answer, and says what is wrong with it.
func (p *probe) check(resp *http.Response) error {
	text, err := io.ReadAll(resp.Body)
	got := fmt.Sprintf("%s %s: got %d %v %.200q", p.method, p.nonce, resp.StatusCode, resp.Header, text)
	switch sum, _ := summary(bytes.NewReader(p.body)); {
	case resp.StatusCode == 502 && resp.Header.Get("X-Nonce") == "":
		return errors.New(got)
	case resp.StatusCode != 200 || resp.Header.Get("X-Nonce") != p.nonce:
		return fmt.Errorf("%w: %s", errOthers, got)
	case err != nil:
		return fmt.Errorf("%s: %w", got, err)
	case p.method == "HEAD" && len(text) == 0, string(text) == early:
	case string(text) != fmt.Sprintf("%s %s\n%s", p.nonce, sum, block[:p.more]):
		return fmt.Errorf("%w: %s", errOthers, got)
	}
	return nil
}

func randomProbe(random *rand.Rand, nonce string) *probe {
	p := &probe{method: []string{"GET", "GET", "HEAD", "POST", "POST", "PUT", "DELETE"}[random.IntN(7)], nonce: nonce}
	size := func() int { return random.IntN(1 << (1 + random.IntN(16))) }
	if p.method == "POST" || p.method == "PUT" {
		start := random.IntN(1 << 19)
		p.body, p.chunked = block[start:start+size()], random.IntN(2) == 0
	}
	p.more = size()
	return p
}

func TestManyRequestsOnOneConnectionGetTheirAnswersInOrder(t *testing.T) {
	eachWayOf(t, 1, func(t *testing.T, w *way) {
		w.answers(echoNonce)
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		c, r := w.dial(t)
		for i := range 50 {
			p := randomProbe(random, fmt.Sprint("request ", i))
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
				t.Fatalf("%s of %d bytes, chunked %v: the connection is closed", p.method, len(p.body), p.chunked)
			}
		}
		if n := w.conns.Load(); n > 10 { // one that has answered before the request's end was taken down is not used again
			t.Errorf("one connection of the client's took %d to the upstream", n)
		}
	})
}

// crowd has many clients ask many things of some ways, some of which leave in between. It returns how many requests were answered.
func crowd(t *testing.T, clients, requests int, faulty bool, ways ...*way) (answered int64) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var good, left atomic.Int64
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			w := ways[i%len(ways)]
			for j := range requests {
				p := randomProbe(random, fmt.Sprintf("%d of client %d", j, i))
				req := p.request(t, w)
				leaves := random.IntN(10)
				switch {
				case leaves == 0 && p.body != nil: // in the middle of the request
					req.Body = io.NopCloser(io.MultiReader(bytes.NewReader(p.body), failing{}))
					req.ContentLength, req.GetBody = -1, nil
				case leaves <= 1: // in the middle of the answer, or before
					ctx, leave := context.WithCancel(req.Context())
					req = req.WithContext(ctx)
					time.AfterFunc(time.Duration(random.IntN(2000))*time.Microsecond, leave)
				}
				err := p.ask(w, req)
				switch {
				case errors.Is(err, errOthers):
					t.Error(err)
					return
				case leaves <= 1:
					left.Add(1)
				case err == nil:
					good.Add(1)
				case !faulty:
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d requests: %d answered, %d left", clients*requests, good.Load(), left.Load())
	return good.Load()
}

// failing is the end of a body whose client leaves.
type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the client leaves") }

func TestEveryOneOfManyClientsGetsItsOwnAnswers(t *testing.T) {
	testenv.Slow(t)
	eachWay(t, func(t *testing.T, w *way) {
		w.answers(echoNonce)
		requests := 200
		if raceDetector && (w.browser != 1 || w.kind.scheme != "http") {
			requests = 10
		}
		crowd(t, 64, requests, false, w)
	})
}

// unruly is an upstream that answers with a probe's nonce, and does wrong now and then.
func unruly(l net.Listener) {
	seed := uint64(time.Now().UnixNano())
	var n uint64
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		n++
		go func(n uint64) {
			defer c.Close()
			c.SetDeadline(time.Now().Add(2 * patience))
			random := rand.New(rand.NewPCG(seed, n))
			for r := bufio.NewReader(c); ; {
				if !unrulyAnswer(c, r, random) {
					return
				}
			}
		}(n)
	}
}

// unrulyAnswer answers one request, and says whether the connection goes on.
func unrulyAnswer(c net.Conn, r *bufio.Reader, random *rand.Rand) bool {
	req, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	nonce := req.Header.Get("X-Nonce")
	wrong := random.IntN(20)
	if wrong == 0 {
		return false
	}
	if wrong == 1 || wrong == 2 { // before the request is complete
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Nonce: %s\r\nContent-Length: 5\r\n\r\n%s", nonce, early)
		if wrong == 1 {
			return false
		}
		_, err := io.Copy(io.Discard, req.Body)
		return err == nil
	}
	got, err := summary(req.Body)
	if err != nil || wrong == 3 {
		return false
	}
	more, _ := strconv.Atoi(req.URL.Query().Get("more"))
	body := fmt.Sprintf("%s %s\n%s", nonce, got, block[:more])
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 200 OK\r\nX-Nonce: %s\r\n", nonce)
	if wrong == 4 || wrong == 5 {
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
	if b.Len() > 8<<10 && (wrong == 6 || wrong == 7) { // in more than one TLS record it may come later than the next request, and nobody can tell then
		wrong = 10
	}
	switch wrong {
	case 6: // more than was asked for, which reads as an answer
		b.WriteString("HTTP/1.1 200 OK\r\nX-Nonce: nobody's\r\nContent-Length: 8\r\n\r\nnobody's")
	case 7:
		b.WriteString("nobody's")
	case 8: // not all of it
		b.Truncate(b.Len() - 1 - random.IntN(b.Len()-1))
	}
	if _, err := c.Write(b.Bytes()); err != nil {
		return false
	}
	if wrong == 9 {
		io.WriteString(c, "\r\n") // a moment later
	}
	return wrong != 4 && wrong != 8 // 5 closes later than it says
}

func TestNoClientGetsAnothersAnswerWhateverTheUpstreamDoes(t *testing.T) {
	testenv.Slow(t)
	plain, overTLS := listen(t), listen(t)
	f := newFront(t, func(f *front, cfg *bff.Config) {
		cfg.Routes = append(cfg.Routes, f.route("/unruly/", "http://"+plain.Addr().String()), f.route("/unruly-tls/", "https://"+overTLS.Addr().String()))
	})
	log.SetOutput(io.Discard) // http.Transport says there what comes without having been asked for
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
	go unruly(plain) // until it is closed, as the next
	go unruly(tls.NewListener(overTLS, &tls.Config{Certificates: f.ways[1].upstream.TLS.Certificates}))
	for _, path := range []string{"/unruly/", "/unruly-tls/"} {
		var ways []*way
		for _, browser := range []int{1, 2} {
			ways = append(ways, &way{front: f, browser: browser, client: f.newClient(t, browser), path: path})
		}
		requests := 200
		if raceDetector {
			requests = map[string]int{"/unruly/": 60, "/unruly-tls/": 15}[path] // handshakes take their time
		}
		if n := crowd(t, 64, requests, true, ways...); n < int64(64*requests/3) {
			t.Errorf("%s: only %d requests of %d were answered: that shows little", path, n, 64*requests)
		}
	}
}
