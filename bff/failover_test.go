package bff_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// upstreamEnv turns the test binary into an upstream at the address in its
// value.
const upstreamEnv = "CLOAKROOM_TEST_UPSTREAM"

func init() {
	if addr := os.Getenv(upstreamEnv); addr != "" {
		serveProcess(addr)
		os.Exit(1)
	}
}

// serveProcess serves until the process is killed. Responses contain the
// process id.
func serveProcess(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	fmt.Println(l.Addr())
	http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch what := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]; {
		case strings.HasPrefix(what, "close"):
			panic(http.ErrAbortHandler)
		case strings.HasPrefix(what, "reset"):
			if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		case strings.HasPrefix(what, "wait"):
			<-r.Context().Done()
		default:
			io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, os.Getpid())
		}
	}))
}

// process is an upstream in its own process.
type process struct {
	t    *testing.T
	addr string
	cmd  *exec.Cmd
}

// startProcess starts an upstream and waits until it listens. The end of the
// test kills it.
func startProcess(t *testing.T, addr string) *process {
	t.Helper()
	p := &process{t: t, addr: addr, cmd: exec.Command(os.Args[0])}
	p.cmd.Env, p.cmd.Stderr = append(os.Environ(), upstreamEnv+"="+addr), os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	p.addr = strings.TrimSpace(line)
	return p
}

func (p *process) pid() string { return fmt.Sprint(p.cmd.Process.Pid) }
func (p *process) url() string { return "http://" + p.addr }

func (p *process) kill() {
	if p.cmd.ProcessState == nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// restartHost is the address of processes that are restarted on the same port.
// No other test uses it, so none can take the port in between.
const restartHost = "127.0.1.1:0"

// newPair starts a broker with a route to two processes.
func newPair(t *testing.T, edit func(*bff.Route)) (a *app, b *bfftest.Browser, one, two *process) {
	t.Helper()
	one, two = startProcess(t, restartHost), startProcess(t, restartHost)
	route := bff.Route{Path: "/pair/", Token: "none", Upstream: []string{one.url(), two.url()}}
	if edit != nil {
		edit(&route)
	}
	a, b = newRoutedApp(t, route)
	return a, b, one, two
}

// wantFrom sends requests until each of the processes has served one. All
// requests must succeed.
func wantFrom(t *testing.T, b *bfftest.Browser, processes ...*process) {
	t.Helper()
	missing := make(map[string]bool)
	for _, p := range processes {
		missing[p.pid()] = true
	}
	deadline := time.Now().Add(20 * time.Second)
	for ; len(missing) > 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		resp := b.Fetch("GET", "/pair/x")
		if resp.StatusCode != 200 {
			t.Fatalf("got %d %s, want 200", resp.StatusCode, resp.Text)
		}
		delete(missing, resp.Text)
	}
	if len(missing) > 0 {
		t.Fatalf("no request reached %v", missing)
	}
}

func TestFailedRequestDisablesNoAddress(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	a, b, one, two := newPair(t, func(r *bff.Route) { r.Timeouts.ResponseHeader = time.Second })
	others := func() {
		t.Helper()
		for _, method := range []string{"GET", "POST", "GET"} {
			if resp := b.Fetch(method, "/pair/x"); resp.StatusCode != 200 {
				t.Errorf("another user's request: got %d %s, want 200\n%s", resp.StatusCode, resp.Text, a.logs)
			}
		}
	}
	for _, poison := range []struct {
		method, path string
		status       int
	}{
		{"GET", "close", 502}, {"POST", "close", 502}, {"GET", "reset", 502}, {"POST", "reset", 502},
		{"GET", "wait", 504}, {"POST", "wait", 504},
	} {
		mixed, alone := 5, 10
		if poison.path == "wait" { // each request takes a second
			mixed, alone = 2, 4
		}
		for range mixed {
			if resp := b.Fetch(poison.method, "/pair/"+poison.path); resp.StatusCode != poison.status {
				t.Errorf("%s %s: got %d", poison.method, poison.path, resp.StatusCode)
			}
			others()
		}
		for range alone { // no other request arrives in the meantime
			b.Fetch(poison.method, "/pair/"+poison.path)
		}
		others()
		left := make(chan struct{})
		time.AfterFunc(20*time.Millisecond, func() { close(left) })
		b.Abort("GET", "/pair/wait", left)
		others()
	}
	for i := range 20 { // even if all addresses count as failed
		b.Fetch("POST", fmt.Sprint("/pair/close", i))
		others()
	}
	for i := range 20 {
		b.Fetch("POST", fmt.Sprint("/pair/close-in-a-row", i))
	}
	others()
	wantFrom(t, b, one, two)
}

func TestInvalidRequestFailsBeforeAnAddressIsSelected(t *testing.T) {
	t.Parallel()
	var calls = make(map[string]int)
	f := newProtocolServer(t, func(f *protocolServer, cfg *bff.Config) {
		cfg.Routes = append(cfg.Routes, bff.Route{
			Path: "/nobody/", Token: "none", CSRF: "fetch-metadata",
			Upstream: []string{"http://127.0.0.1:1", "http://127.0.0.1:1"},
		})
	})
	for _, w := range f.pairs {
		w.handle(func(http.ResponseWriter, *http.Request) {})
	}
	client := f.newClient(t, 2)
	for _, path := range append([]string{"/nobody/"}, f.pairs[0].path, f.pairs[2].path, f.pairs[3].path) {
		for _, query := range []string{"a b", "a=%20 ", "<\"> "} {
			u, err := url.Parse(f.url)
			if err != nil {
				t.Fatal(err)
			}
			u.Scheme, u.Path, u.RawQuery = "https", path+"x", query
			header := http.Header{"Sec-Fetch-Site": {"same-origin"}}
			req := (&http.Request{Method: "GET", URL: u, Header: header}).WithContext(t.Context())
			for _, c := range f.browser.Cookies() {
				req.AddCookie(c)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 400 || !strings.Contains(string(text), `"bad_request"`) {
				t.Errorf("%s?%s: got %d %s, want 400 bad_request", path, query, resp.StatusCode, text)
			}
			calls[path]++
		}
	}
	for _, w := range f.pairs {
		if n := w.calls.Load(); n > 0 {
			t.Errorf("%s: the upstream got %d requests", w.name, n)
		}
	}
	if got := strings.Count(f.logs.String(), "bad_request"); got != 12 {
		t.Errorf("%d log lines name the cause of 12 refusals", got)
	}
}

func TestCrashedAddressIsUsedAfterItsRestart(t *testing.T) {
	t.Parallel()
	a, b, one, two := newPair(t, nil)
	wantFrom(t, b, one, two)
	one.kill()
	for i := range 30 {
		method := []string{"GET", "PUT"}[i%2] // a POST on a broken connection is not retried
		if resp := b.Fetch(method, "/pair/x"); resp.StatusCode != 200 || resp.Text != two.pid() {
			t.Errorf("got %d %s\n%s", resp.StatusCode, resp.Text, a.logs)
		}
	}
	for range 10 {
		if resp := b.Fetch("POST", "/pair/x"); resp.StatusCode != 200 {
			t.Errorf("POST: got %d %s, want 200", resp.StatusCode, resp.Text)
		}
	}
	one = startProcess(t, one.addr)
	wantFrom(t, b, one, two)
}

func TestStalledAddressIsSkippedUntilItResponds(t *testing.T) {
	t.Parallel()
	_, b, one, two := newPair(t, func(r *bff.Route) { r.Timeouts.ResponseHeader = time.Second })
	wantFrom(t, b, one, two)
	one.signal(syscall.SIGSTOP)
	defer one.signal(syscall.SIGCONT)
	failed, inARow := 0, 0
	for i := 0; inARow < 40 && failed < 30; i++ {
		if b.Fetch("GET", fmt.Sprint("/pair/", i)).StatusCode == 200 {
			inARow++
		} else {
			failed++
			inARow = 0
		}
	}
	if inARow < 40 {
		t.Errorf("the address still gets requests after %d failures", failed)
	}
	one.signal(syscall.SIGCONT)
	wantFrom(t, b, one, two)
}

func TestFailedAddressIsTriedIfAllHaveFailed(t *testing.T) {
	t.Parallel()
	a, b, one, two := newPair(t, nil)
	for _, back := range []*process{one, two, one} {
		one.kill()
		two.kill()
		for range 5 {
			resp := b.Fetch("GET", "/pair/x")
			if resp.StatusCode != 502 { // on a connection that has just been broken
				wantProblem(t, resp, 503, "upstream_unavailable")
			}
		}
		p := startProcess(t, back.addr)
		for _, method := range []string{"GET", "POST"} {
			if resp := b.Fetch(method, "/pair/x"); resp.StatusCode != 200 || resp.Text != p.pid() {
				t.Fatalf("%s after one has recovered: got %d %s\n%s", method, resp.StatusCode, resp.Text, a.logs)
			}
		}
		p.kill()
	}
}

// A connection attempt without a response takes timeouts.connect. At most one
// request may wait for that.
func TestUnreachableAddressIsProbedInTheBackground(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	full := fullListener(t)
	p := startProcess(t, "127.0.0.1:0")
	_, b := newRoutedApp(t, bff.Route{
		Path: "/pair/", Token: "none", Upstream: []string{"http://" + full, p.url()},
		Timeouts: bff.Timeouts{Connect: time.Second},
	})
	slow := 0
	for until := time.Now().Add(4 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		began := time.Now()
		if resp := b.Fetch("POST", "/pair/x"); resp.StatusCode != 200 {
			t.Fatalf("got %d %s, want 200", resp.StatusCode, resp.Text)
		}
		if time.Since(began) > 800*time.Millisecond {
			slow++
		}
	}
	if slow > 2 {
		t.Errorf("%d requests waited for the address", slow)
	}
}

// fullListener returns an address where connection attempts time out because
// the backlog is full.
func fullListener(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", at.(*syscall.SockaddrInet4).Port)
	for range 8 {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		cancel()
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the backlog of the listener is not full")
	return ""
}
