//go:build unix

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cloakroom-bff/cloakroom/internal/benchtable"
	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

const (
	signers      = 16   // concurrent logins while Redis is filled
	costOps      = 1000 // logins and refreshes per round
	users        = 100  // sessions in use concurrently
	amongOps     = 2000 // lookups among many sessions per round
	lookUpFor    = 200 * time.Millisecond
	freshFor     = 10 * time.Second
	stormCallers = 200
	stormWait    = 150 * time.Millisecond // response time of the provider
	replicas     = 3
)

// columns are the kinds of refresh token.
var columns = []struct {
	name         string
	refreshIsJWT bool
}{{"random", false}, {"JWT", true}}

// bench is what the measurements share.
type bench struct {
	options
	benchtable.Results
	lists map[string]string // :: operation → its commands, of the last round

	empty, busy   *server  // empty is filled and emptied, busy has some sessions in use
	sized         []*sized // with a fixed number of sessions each
	filler, plain *replica // of empty, and of busy without Watch, so without a cache
	watching      *replica // of busy

	issued   []session.Tokens // returned by the provider of busy in turn, without delay
	requests []*http.Request  // of the sessions in use
}

type sized struct {
	*server
	filled
	sessions int
}

type filled struct {
	seconds  float64         // for all logins
	bytes    float64         // growth of Redis
	requests []*http.Request // of every hundredth session
}

// replica is a Manager with connections of its own.
type replica struct {
	*session.Manager
	cookie *session.Cookie
	close  func()
}

// find returns the session of a request.
func (r *replica) find(ctx context.Context, request *http.Request) (*session.Session, error) {
	ticket, _ := r.cookie.Read(request)
	return r.Find(ctx, ticket)
}

// fresh returns the session of a request with an access token that is good.
func (r *replica) fresh(ctx context.Context, request *http.Request) (*session.Session, error) {
	s, err := r.find(ctx, request)
	if err != nil {
		return nil, err
	}
	return r.Fresh(ctx, s, "")
}

var keys = [][]byte{[]byte(rand.Text() + rand.Text())[:32]}

func newReplica(
	s *server, watch bool,
	refresh func(context.Context, *session.Session, string) (session.RefreshResult, error),
) (*replica, error) {
	silent := slog.New(slog.DiscardHandler)
	store, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: s.url, Logger: silent})
	if err != nil {
		return nil, err
	}
	m, err := session.NewManager(session.Config{
		Store: store, Keys: keys, Refresh: refresh, Logger: silent,
		IdleTimeout: 12 * time.Hour, // no session is used while Redis is filled
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	if watch {
		watching.Go(func() { m.Run(ctx) }) // until close
	}
	return &replica{m, session.NewCookie(m.Keyring(), session.CookieConfig{}), func() {
		cancel()
		watching.Wait()
		store.Close()
	}}, nil
}

func newBench(o options) *bench {
	return &bench{options: o, Results: make(benchtable.Results), lists: make(map[string]string)}
}

// prepare starts what the measurements need, until close.
func (b *bench) prepare(ctx context.Context) (err error) {
	if b.empty, err = startRedis(ctx, b.redis); err != nil {
		return err
	}
	if b.busy, err = startRedis(ctx, b.redis); err != nil {
		return err
	}
	for range users {
		b.issued = append(b.issued, tokens(uuid(), uuid(), false))
	}
	if b.filler, err = newReplica(b.empty, false, noRefresh); err != nil {
		return err
	}
	if b.plain, err = newReplica(b.busy, false, noRefresh); err != nil {
		return err
	}
	var next atomic.Int64
	atOnce := func(context.Context, *session.Session, string) (session.RefreshResult, error) {
		return session.RefreshResult{Tokens: b.issued[next.Add(1)%users]}, nil
	}
	if b.watching, err = newReplica(b.busy, true, atOnce); err != nil {
		return err
	}
	for range users {
		r, err := signIn(ctx, b.plain, login(false))
		if err != nil {
			return err
		}
		b.requests = append(b.requests, r)
	}
	if err := b.awaitCache(ctx, b.watching); err != nil {
		return err
	}
	sizes := []int{1_000, 100_000}
	if b.million {
		sizes = append(sizes, 1_000_000)
	}
	for _, size := range sizes {
		log.Printf("signing in %d users", size)
		if err := b.addSized(ctx, size); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) close() {
	for _, r := range []*replica{b.filler, b.plain, b.watching} {
		if r != nil {
			r.close()
		}
	}
	for _, s := range b.sized {
		s.stop()
	}
	for _, s := range []*server{b.empty, b.busy} {
		if s != nil {
			s.stop()
		}
	}
}

func (b *bench) addSized(ctx context.Context, sessions int) error {
	s, err := startRedis(ctx, b.redis)
	if err != nil {
		return err
	}
	z := &sized{server: s, sessions: sessions}
	b.sized = append(b.sized, z)
	r, err := newReplica(s, false, noRefresh)
	if err != nil {
		return err
	}
	defer r.close()
	z.filled, err = fill(ctx, s, r, sessions, false)
	return err
}

func noRefresh(context.Context, *session.Session, string) (session.RefreshResult, error) {
	return session.RefreshResult{}, errors.New("nothing is to be refreshed here")
}

// signIn starts a session and returns a request of its browser.
func signIn(ctx context.Context, r *replica, s session.New) (*http.Request, error) {
	started, err := r.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	r.cookie.Write(w, started)
	request := httptest.NewRequest("GET", "/", nil)
	for _, c := range w.Result().Cookies() {
		request.AddCookie(c)
	}
	return request, nil
}

// fill empties Redis and signs in users.
func fill(ctx context.Context, s *server, r *replica, sessions int, refreshIsJWT bool) (filled, error) {
	// The first ones are not counted: they include memory of connections,
	// buffers and scripts.
	if _, err := signInMany(ctx, r, signers*100, refreshIsJWT); err != nil {
		return filled{}, err
	}
	if err := s.client.FlushAll(ctx).Err(); err != nil {
		return filled{}, err
	}
	before, err := s.usedMemory(ctx)
	if err != nil {
		return filled{}, err
	}
	began := time.Now()
	requests, err := signInMany(ctx, r, sessions, refreshIsJWT)
	if err != nil {
		return filled{}, err
	}
	took := time.Since(began)
	after, err := s.usedMemory(ctx)
	return filled{took.Seconds(), after - before, requests}, err
}

func signInMany(ctx context.Context, r *replica, sessions int, refreshIsJWT bool) ([]*http.Request, error) {
	requests := make([]*http.Request, (sessions+99)/100)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(signers)
	for i := range requests {
		group.Go(func() error {
			for j := i * 100; j < min(sessions, i*100+100); j++ {
				request, err := signIn(ctx, r, login(refreshIsJWT))
				if err != nil {
					return err
				}
				requests[i] = request
			}
			return nil
		})
	}
	return requests, group.Wait()
}

// awaitCache waits until a replica finds a session without asking Redis.
func (b *bench) awaitCache(ctx context.Context, r *replica) error {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		before, err := b.busy.commands(ctx)
		if err != nil {
			return err
		}
		if _, err := r.find(ctx, b.requests[0]); err != nil {
			return err
		}
		after, err := b.busy.commands(ctx)
		if err != nil {
			return err
		}
		if after["get"] == before["get"] {
			return nil
		}
	}
	return errors.New("sessions are not cached")
}

// memory measures what a session takes in Redis, in all and by kind of key.
func (b *bench) memory(ctx context.Context) error {
	for _, c := range columns {
		filled, err := fill(ctx, b.empty, b.filler, b.sessions, c.refreshIsJWT)
		if err != nil {
			return err
		}
		b.Add("memory "+c.name, filled.bytes/float64(b.sessions))
		for _, kind := range []string{"session", "user", "sid"} {
			usage, size, err := b.sample(ctx, kind)
			if err != nil {
				return err
			}
			b.Add(kind+" key "+c.name, usage)
			if kind == "session" {
				b.Add("record "+c.name, size)
			}
		}
	}
	return b.empty.client.FlushAll(ctx).Err()
}

// sample returns the mean memory of some keys of one kind, and the mean size of
// their values if they are strings.
func (b *bench) sample(ctx context.Context, kind string) (usage, size float64, err error) {
	n := 0.0
	for i := b.empty.client.Scan(ctx, 0, "cloakroom:"+kind+":*", 1000).Iterator(); n < 500 && i.Next(ctx); n++ {
		bytes, err := b.empty.client.MemoryUsage(ctx, i.Val()).Result()
		if err != nil {
			return 0, 0, err
		}
		usage += float64(bytes)
		if kind == "session" {
			size += float64(b.empty.client.StrLen(ctx, i.Val()).Val())
		}
	}
	if n == 0 {
		return 0, 0, fmt.Errorf("there are no keys cloakroom:%s:*", kind)
	}
	return usage / n, size / n, nil
}

// login measures Start.
func (b *bench) login(ctx context.Context) error {
	sessions := make([]session.New, costOps)
	for i := range sessions {
		sessions[i] = login(false)
	}
	return b.cost(ctx, "login", func(i int) error {
		started, err := b.watching.Start(ctx, sessions[i])
		if err == nil {
			b.watching.cookie.Write(httptest.NewRecorder(), started)
		}
		return err
	})
}

// refresh measures Refresh, at a provider that answers at once.
func (b *bench) refresh(ctx context.Context) error {
	return b.cost(ctx, "refresh", func(i int) error {
		s, err := b.watching.find(ctx, b.requests[i%users])
		if err == nil {
			_, err = b.watching.Refresh(ctx, s)
		}
		return err
	})
}

// cost measures an operation, once at a time.
func (b *bench) cost(ctx context.Context, what string, op func(i int) error) error {
	before, err := b.busy.commands(ctx)
	if err != nil {
		return err
	}
	cpu := cpuTime()
	took := make([]float64, costOps)
	for i := range took {
		began := time.Now()
		if err := op(i); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		took[i] = time.Since(began).Seconds()
	}
	cpu = cpuTime() - cpu
	after, err := b.busy.commands(ctx)
	if err != nil {
		return err
	}
	addPercentiles(b.Results, what, took)
	b.Add(what+" cpu", cpu.Seconds()/costOps)
	_, b.lists[what] = perCall(before, after, costOps)
	return nil
}

// lookUp measures Find and Fresh, and the cookie.
func (b *bench) lookUp(ctx context.Context) error {
	for _, m := range []struct {
		what   string
		lookUp func(context.Context, *http.Request) (*session.Session, error)
		for_   time.Duration
	}{
		{"cold Get", b.plain.find, lookUpFor},
		{"cold Fresh", b.plain.fresh, lookUpFor},
		{"warm Get", b.watching.find, lookUpFor},
		{"warm Fresh", b.watching.fresh, freshFor},
	} {
		for _, r := range b.requests { // to fill the cache, if there is one
			if _, err := m.lookUp(ctx, r); err != nil {
				return err
			}
		}
		calls, err := b.busy.commands(ctx)
		if err != nil {
			return err
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began, n := time.Now(), 0
		for ; time.Since(began) < m.for_; n++ {
			if _, err := m.lookUp(ctx, b.requests[n%users]); err != nil {
				return err
			}
		}
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		now, err := b.busy.commands(ctx)
		if err != nil {
			return err
		}
		b.Add(m.what, took.Seconds()/float64(n))
		b.Add(m.what+" allocs", float64(after.Mallocs-before.Mallocs)/float64(n))
		b.Add(m.what+" bytes", float64(after.TotalAlloc-before.TotalAlloc)/float64(n))
		total, _ := perCall(calls, now, n)
		b.Add(m.what+" commands", total)
		b.Add(m.what+" commands a second", total*float64(n)/took.Seconds())
	}
	return nil
}

// storm lets all callers ask at once for a session whose access token has
// expired, on several replicas.
func (b *bench) storm(ctx context.Context) error {
	var asked atomic.Int64
	slow := func(context.Context, *session.Session, string) (session.RefreshResult, error) {
		asked.Add(1)
		time.Sleep(stormWait)
		return session.RefreshResult{Tokens: b.issued[0]}, nil
	}
	var storming []*replica
	for range replicas {
		r, err := newReplica(b.busy, true, slow)
		if err != nil {
			return err
		}
		defer r.close()
		if err := b.awaitCache(ctx, r); err != nil {
			return err
		}
		storming = append(storming, r)
	}
	s := login(false)
	s.Tokens.Issued, s.Tokens.Expiry = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
	request, err := signIn(ctx, b.plain, s)
	if err != nil {
		return err
	}
	took := make([]float64, stormCallers)
	var began time.Time
	ready := make(chan struct{})
	var group errgroup.Group
	for i := range took {
		group.Go(func() error {
			<-ready
			_, err := storming[i%replicas].fresh(ctx, request)
			took[i] = time.Since(began).Seconds()
			return err
		})
	}
	began = time.Now()
	close(ready)
	if err := group.Wait(); err != nil {
		return err
	}
	addPercentiles(b.Results, "storm", took)
	b.Add("storm refreshes", float64(asked.Load()))
	return nil
}

// startUp measures a replica's way to its first session, and the look-up of
// others among those that are there.
func (b *bench) startUp(ctx context.Context) error {
	for _, z := range b.sized {
		began := time.Now()
		r, err := newReplica(z.server, false, noRefresh)
		if err != nil {
			return err
		}
		defer r.close()
		if _, err := r.find(ctx, z.requests[0]); err != nil {
			return err
		}
		what := strconv.Itoa(z.sessions)
		b.Add("start-up "+what, time.Since(began).Seconds())
		took := make([]float64, amongOps)
		for i := range took {
			began := time.Now()
			if _, err := r.find(ctx, z.requests[i*7919%len(z.requests)]); err != nil { // a prime, to spread them
				return err
			}
			took[i] = time.Since(began).Seconds()
		}
		addPercentiles(b.Results, "among "+what, took)
	}
	return nil
}

// cpuTime is how long this process has kept processors busy.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage) // fails for wrong arguments only
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
