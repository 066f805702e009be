//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/internal/benchtable"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// call is a kind of call to Cloakroom, and what it may cost.
type call struct {
	name string
	does string // a sentence for the reader of the table
	// prepare returns what a client does again and again. A client that has
	// nothing left to do returns errNothingLeft.
	prepare func(c *client) (step func() error, err error)
	each    float64 // calls in a step; 0: one
	goals   []goal
}

// goal is a bound of what a call costs.
type goal struct {
	figure  string // cpuRatio, or a figure of system.figures
	most    float64
	because string
}

// String is matched by the flag -rows.
func (c call) String() string { return "call: " + c.name }

const (
	proxied = "proxied request"
	// cpuRatio is the CPU time relative to that of a proxied request.
	cpuRatio = "ratio"
)

var errNothingLeft = errors.New("nothing left to do")

// calls returns the kinds of calls that rows matches, with the proxied request
// that they are compared with.
func (o options) calls() []call {
	calls := []call{
		{name: proxied, prepare: fetch("/api/1024"),
			does: "`GET` of 1 KB below a route, for comparison"},
		{name: "session endpoint", prepare: fetch("/bff/session"),
			does: "`GET /bff/session` of a signed-in user",
			goals: []goal{
				{"trips", 0.05, "the session is in the cache"},
				{cpuRatio, 1, "there is no upstream"},
			}},
		{name: "file", prepare: fetch(appScript),
			does: "`GET` of a script of the app with its body, 64 KB before compression",
			goals: []goal{
				{"trips", 0.05, "files need no session"},
				{cpuRatio, 1, "there is no upstream"},
			}},
		{name: "file, 304", prepare: fetchUnchanged,
			does: "the same with `If-None-Match`: the browser has the file",
			goals: []goal{
				{"trips", 0.05, "files need no session"},
				{cpuRatio, 0.5, "half of a proxied request is its upstream"},
			}},
		{name: "event", prepare: readEvents,
			does: fmt.Sprintf("one event of 128 bytes; each stream has one every %v and is idle in between",
				eventInterval),
			goals: []goal{
				{"trips", 0.05, "an open stream follows its session"},
				{cpuRatio, 1. / 3, "one read and one write, not two of each, and no header"},
			}},
		{name: "WebSocket message", prepare: echoMessages, each: 2,
			does: "one message of 128 bytes, half of them to the upstream, half from it",
			goals: []goal{
				{"trips", 0.05, "an open WebSocket follows its session"},
				{cpuRatio, 1. / 4, "one read and one write, not two of each, and nothing to parse"},
			}},
		{name: "login", prepare: signInAgain,
			does: "`GET /bff/login` and the callback: code exchange, check of the ID token, new session",
			goals: []goal{
				{"trips", 7, "one for each thing that is stored or checked: attempt, index, device, session, logout, " +
					"result, event"},
				{cpuRatio, 20, "a tenth of a session of 200 requests"},
			}},
		{name: "refresh", prepare: refreshAll,
			does: "`POST /bff/session/refresh` of a session that is not in the cache",
			goals: []goal{
				{"trips", 6, "find the session, take the lease, read again, write, release, keep the event"},
				{cpuRatio, 10, "a tenth of 100 requests in the 5 minutes of a token"},
			}},
		{name: "back-channel logout", prepare: logOutAll,
			does: "`POST /bff/backchannel-logout`, for a user with one session",
			goals: []goal{
				{"trips", 9, "look for the token, note the end, list, read the session, write why, delete, clean up, " +
					"remember the token, keep the event"},
				{cpuRatio, 20, "a tenth of a session of 200 requests"},
			}},
	}
	var wanted []call
	for _, c := range calls {
		if o.rows == nil || o.rows.MatchString(c.String()) {
			wanted = append(wanted, c)
		}
	}
	if len(wanted) > 0 && wanted[0].name != proxied {
		wanted = append(calls[:1:1], wanted...)
	}
	return wanted
}

// callers is how many clients make calls at the same time.
const callers = 32

// client is a client of Cloakroom with a connection of its own.
type client struct {
	*system
	long time.Duration // of a measurement
	conn net.Conn
	r    *bufio.Reader // of the client itself, which counts
	got  float64       // bytes
}

func (s *system) newClient(long time.Duration) (*client, error) {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		return nil, err
	}
	c := &client{system: s, long: long, conn: conn}
	c.r = bufio.NewReaderSize(c, 64<<10)
	return c, nil
}

// closeAll closes the connections of clients. It ignores those that are nil.
func closeAll(clients []*client) {
	for _, c := range clients {
		if c != nil {
			c.conn.Close()
		}
	}
}

func (c *client) Read(p []byte) (int, error) {
	n, err := c.conn.Read(p)
	c.got += float64(n)
	return n, err
}

// do sends a request and reads the response, which must have a status.
func (c *client) do(request []byte, status int) (*http.Response, error) {
	if _, err := c.conn.Write(request); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != status {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		return nil, fmt.Errorf("the response is %d: %s", resp.StatusCode, text)
	}
	if status != http.StatusSwitchingProtocols && resp.Header.Get("Content-Type") != "text/event-stream" {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	return resp, err
}

// measureCall has many clients make calls, and keeps what each call has cost.
func (r *rig) measureCall(
	ctx context.Context, s *system, c call, long time.Duration, results benchtable.Results,
) error {
	clients, steps := make([]*client, callers), make([]func() error, callers)
	var opening errgroup.Group
	for i := range clients {
		opening.Go(func() (err error) {
			if clients[i], err = s.newClient(long); err != nil {
				return err
			}
			if steps[i], err = c.prepare(clients[i]); err != nil {
				return err
			}
			return steps[i]() // warm up
		})
	}
	defer closeAll(clients)
	if err := opening.Wait(); err != nil {
		return err
	}
	before, err := r.figures(ctx, s, false)
	if err != nil {
		return err
	}
	began := time.Now()
	done, got := make([]float64, callers), 0.
	group, ctx := errgroup.WithContext(ctx)
	for i, c := range clients {
		group.Go(func() error {
			defer context.AfterFunc(ctx, func() { c.conn.Close() })()
			c.got = 0
			for done[i] == 0 || time.Since(began) < long {
				err := steps[i]()
				if errors.Is(err, errNothingLeft) {
					return nil
				}
				if err != nil {
					return err
				}
				done[i]++
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	after, err := r.figures(context.WithoutCancel(ctx), s, true)
	if err != nil {
		return err
	}
	n := 0.
	for i := range clients {
		n += done[i] * max(1, c.each)
		got += clients[i].got
	}
	elapsed := time.Since(began).Seconds()
	for name := range after {
		total := after[name] - before[name] - r.reading[s][name] - elapsed*r.idle[s][name]
		results.Add(s.callKey(c, name), total/n)
	}
	results.Add(s.callKey(c, "got"), got/n)
	return nil
}

func (s *system) callKey(c call, figure string) string {
	return s.name + " " + c.String() + " " + figure
}

// figures returns how much CPU time the system has used, in microseconds, what
// Redis has done, and how much the system has allocated. The CPU time is read
// last, or first.
func (r *rig) figures(ctx context.Context, s *system, cpuFirst bool) (map[string]float64, error) {
	all := make(map[string]float64)
	readings := []func() error{
		func() error { return s.readMetrics(ctx, all) },
		func() error { return r.readRedis(ctx, all) },
		func() error { all["cpu"] = s.cpu(); return nil },
	}
	if cpuFirst {
		readings[0], readings[2] = readings[2], readings[0]
	}
	for _, read := range readings {
		if err := read(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// readRedis reads what Redis has done. A read of Redis, of a command or of
// several at once, is a round trip.
func (r *rig) readRedis(ctx context.Context, all map[string]float64) error {
	text, err := r.redisClient.Info(ctx, "stats").Result()
	if err != nil {
		return err
	}
	return readFields(text, ":", all, map[string]string{
		"total_reads_processed": "trips", "total_commands_processed": "commands",
		"total_net_input_bytes": "in", "total_net_output_bytes": "out",
	})
}

// readMetrics reads what a Cloakroom has allocated.
func (s *system) readMetrics(ctx context.Context, all map[string]float64) error {
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+s.admin+"/metrics", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return readFields(string(text), " ", all, map[string]string{
		"go_memstats_mallocs_total": "allocations", "go_memstats_alloc_bytes_total": "allocated",
	})
}

// readFields reads numbers from lines of text, into all under the names that
// names has for them.
func readFields(text, separator string, all map[string]float64, names map[string]string) error {
	for line := range strings.Lines(text) {
		field, value, _ := strings.Cut(strings.TrimSpace(line), separator)
		name, ok := names[field]
		if !ok {
			continue
		}
		var err error
		if all[name], err = strconv.ParseFloat(value, 64); err != nil {
			return err
		}
		delete(names, field)
	}
	if len(names) > 0 {
		return fmt.Errorf("not found: %v", names)
	}
	return nil
}

// measureIdle keeps what the readings of figures cost, and what happens in a
// second without any call.
func (r *rig) measureIdle(ctx context.Context, s *system, long time.Duration) error {
	difference := func(pause time.Duration) (map[string]float64, error) {
		before, err := r.figures(ctx, s, false)
		if err != nil {
			return nil, err
		}
		time.Sleep(pause)
		after, err := r.figures(ctx, s, true)
		for name := range after {
			after[name] -= before[name]
		}
		return after, err
	}
	for range 3 { // open connections, and wait until the start is over
		if _, err := difference(long / 2); err != nil {
			return err
		}
	}
	var err error
	if r.reading[s], err = difference(0); err != nil {
		return err
	}
	idle, err := difference(2 * long)
	for name := range idle {
		idle[name] = (idle[name] - r.reading[s][name]) / (2 * long).Seconds()
	}
	r.idle[s] = idle
	return err
}

// measureCalls measures all calls in rounds, each Cloakroom with each call once
// in a round.
func (r *rig) measureCalls(ctx context.Context, o options, results benchtable.Results) error {
	r.redisClient = redis.NewClient(&redis.Options{Addr: r.redis})
	defer r.redisClient.Close()
	r.reading, r.idle = make(map[*system]map[string]float64), make(map[*system]map[string]float64)
	for _, s := range r.brokers() {
		if err := r.measureIdle(ctx, s, o.measure); err != nil {
			return err
		}
	}
	for round := range o.rounds {
		log.Printf("round %d of %d of the other calls", round+1, o.rounds)
		for _, c := range o.calls() {
			for _, s := range r.brokers() {
				if err := r.measureCall(ctx, s, c, o.measure, results); err != nil {
					return fmt.Errorf("%s, %v: %w", s.name, c, err)
				}
			}
		}
	}
	return nil
}

// brokers are the systems that are Cloakroom.
func (r *rig) brokers() (all []*system) {
	for _, s := range r.systems {
		if s.provider != nil {
			all = append(all, s)
		}
	}
	return all
}

// fetch returns a step that gets a path as a script does.
func fetch(path string) func(*client) (func() error, error) {
	return func(c *client) (func() error, error) {
		request := c.request("GET", path, 0)
		return func() error {
			_, err := c.do(request, http.StatusOK)
			return err
		}, nil
	}
}

// fetchUnchanged is fetch of a script that the browser has in its cache.
func fetchUnchanged(c *client) (func() error, error) {
	request := c.request("GET", appScript, 0)
	resp, err := c.do(request, http.StatusOK)
	if err != nil {
		return nil, err
	}
	request = fmt.Appendf(bytes.TrimSuffix(request, []byte("\r\n")), "If-None-Match: %s\r\n\r\n",
		resp.Header.Get("ETag"))
	return func() error {
		_, err := c.do(request, http.StatusNotModified)
		return err
	}, nil
}

// readEvents opens an event stream. A step reads an event.
func readEvents(c *client) (func() error, error) {
	resp, err := c.do(c.request("GET", eventsPath, 0), http.StatusOK)
	if err != nil {
		return nil, err
	}
	events := bufio.NewReader(resp.Body)
	return func() error {
		for {
			line, err := events.ReadSlice('\n')
			if err != nil || len(line) == 1 {
				return err
			}
		}
	}, nil
}

// echoMessages opens a WebSocket. A step sends a message and reads its echo.
func echoMessages(c *client) (func() error, error) {
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nOrigin: http://%[2]s\r\nConnection: Upgrade\r\n"+
		"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\nSec-Fetch-Site: same-origin\r\n"+
		"Sec-Fetch-Mode: websocket\r\nSec-Fetch-Dest: empty\r\nCookie: %s\r\n\r\n",
		socketPath, c.host, socketKey, c.cookie)
	resp, err := c.do([]byte(request), http.StatusSwitchingProtocols)
	if err != nil {
		return nil, err
	}
	if got, want := resp.Header.Get("Sec-WebSocket-Accept"), acceptSocket(socketKey); got != want {
		return nil, fmt.Errorf("the handshake is accepted with %q, want %q", got, want)
	}
	message := bytes.Repeat([]byte("m"), 128)
	frame := appendFrame(nil, message, []byte{1, 2, 3, 4})
	return func() error {
		if _, err := c.conn.Write(frame); err != nil {
			return err
		}
		echo, err := readFrame(c.r)
		if err == nil && !bytes.Equal(echo, message) {
			err = fmt.Errorf("the echo is %q", echo)
		}
		return err
	}, nil
}

// signedIn is a user who has signed in.
type signedIn struct{ cookie, sub string }

// signInAgain returns a step that signs a new user in.
func signInAgain(c *client) (func() error, error) {
	return func() error {
		_, err := c.signIn()
		return err
	}, nil
}

// providerClient is the browser, as far as the provider sees it.
var providerClient = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: callers},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// signIn signs a new user in: to the login endpoint, to the provider, and back
// to the callback.
func (c *client) signIn() (signedIn, error) {
	sub := rand.Text()
	hint, err := c.provider.SignInOnce(devidp.User{Sub: sub, Name: "Carol Example", Email: "carol@example.com"})
	if err != nil {
		return signedIn{}, err
	}
	resp, err := c.do(c.navigation("/bff/login?return_to=/orders&login_hint="+url.QueryEscape(hint), "same-origin", ""),
		http.StatusFound)
	if err != nil {
		return signedIn{}, fmt.Errorf("login: %w", err)
	}
	attempt := resp.Cookies()
	if resp, err = providerClient.Get(resp.Header.Get("Location")); err != nil {
		return signedIn{}, err
	}
	resp.Body.Close()
	back, err := resp.Location()
	if err != nil || len(attempt) != 1 {
		return signedIn{}, fmt.Errorf("the login has %d cookies, the response of the provider is %s",
			len(attempt), resp.Status)
	}
	resp, err = c.do(c.navigation(back.RequestURI(), "cross-site", attempt[0].Name+"="+attempt[0].Value),
		http.StatusSeeOther)
	if err != nil {
		return signedIn{}, fmt.Errorf("callback: %w", err)
	}
	name, _, _ := strings.Cut(c.cookie, "=")
	for _, cookie := range resp.Cookies() {
		if cookie.Name == name {
			return signedIn{name + "=" + cookie.Value, sub}, nil
		}
	}
	return signedIn{}, errors.New("the callback sets no session cookie")
}

// navigation returns the request of a browser that goes to a page. site is the
// Sec-Fetch-Site.
func (c *client) navigation(path, site, cookie string) []byte {
	text := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) "+
		"AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36\r\n"+
		"Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n"+
		"Accept-Language: en-US,en;q=0.9\r\nSec-Fetch-Site: %s\r\nSec-Fetch-Mode: navigate\r\n"+
		"Sec-Fetch-Dest: document\r\n", path, c.host, site)
	if cookie != "" {
		text += "Cookie: " + cookie + "\r\n"
	}
	return []byte(text + "\r\n")
}

// withSessions returns a step that does something with another session each
// time. Each client has sessions of its own.
func (c *client) withSessions(do func(signedIn) error) (func() error, error) {
	left := make([]signedIn, 1+max(1, c.long/(100*time.Millisecond)))
	for i := range left {
		var err error
		if left[i], err = c.signIn(); err != nil {
			return nil, err
		}
	}
	return func() error {
		if len(left) == 0 {
			return errNothingLeft
		}
		next := left[0]
		left = left[1:]
		return do(next)
	}, nil
}

func refreshAll(c *client) (func() error, error) {
	return c.withSessions(func(u signedIn) error {
		user := *c.system
		user.cookie = u.cookie
		_, err := c.do(user.request("POST", "/bff/session/refresh", 0), http.StatusOK)
		return err
	})
}

func logOutAll(c *client) (func() error, error) {
	return c.withSessions(func(u signedIn) error {
		sid, _ := c.sids.Load(u.sub)
		token, err := c.provider.LogoutToken(clientName, u.sub, sid.(string))
		if err != nil {
			return err
		}
		form := url.Values{"logout_token": {token}}.Encode()
		_, err = c.do(fmt.Appendf(nil, "POST /bff/backchannel-logout HTTP/1.1\r\nHost: %s\r\n"+
			"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", c.host, len(form), form),
			http.StatusOK)
		return err
	})
}
