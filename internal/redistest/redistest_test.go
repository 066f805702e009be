package redistest_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/redis/go-redis/v9"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestServerUsesArgumentsAndKeepsData(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t, "--maxmemory", "3mb")
	if got := s.Do("CONFIG", "GET", "maxmemory"); !strings.Contains(got, "3145728") {
		t.Errorf("maxmemory: got %q, want 3145728", got)
	}
	s.Do("SET", "coat", "blue")
	s.Kill()
	if got := s.Do("PING"); got != "" {
		t.Errorf("PING after Kill: got %q, want no response", got)
	}
	s.Start()
	if got, want := s.Do("GET", "coat"), "$4\r\nblue"; got != want {
		t.Errorf("GET after Kill and Start: got %q, want %q", got, want)
	}
}

func TestTLSServerAcceptsOnlyItsUser(t *testing.T) {
	t.Parallel()
	s, caFile := redistest.StartTLS(t)
	if got := s.Do("SET", "coat", "blue"); got != "+OK" {
		t.Errorf("SET: got %q, want +OK", got)
	}
	if want := "rediss://cloakroom:p%40ss%3Aw%2Frd@" + s.Addr() + "/0"; s.URL() != want {
		t.Errorf("URL: got %s, want %s", s.URL(), want)
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	get := func(change func(*redis.Options)) (string, error) {
		options, err := redis.ParseURL(s.URL())
		if err != nil {
			t.Fatal(err)
		}
		options.MaxRetries = -1
		options.TLSConfig.RootCAs = roots
		change(options)
		client := redis.NewClient(options)
		defer client.Close()
		return client.Get(t.Context(), "coat").Result()
	}
	if got, err := get(func(*redis.Options) {}); got != "blue" || err != nil {
		t.Errorf("GET with the URL and the CA: got %q, %v, want blue", got, err)
	}
	if _, err := get(func(o *redis.Options) { o.Password = "password" }); err == nil ||
		!redis.HasErrorPrefix(err, "WRONGPASS") {
		t.Errorf("GET with a wrong password: got %v, want WRONGPASS", err)
	}
	if _, err := get(func(o *redis.Options) { o.Username, o.Password = "", "" }); err == nil ||
		!redis.HasErrorPrefix(err, "NOAUTH") {
		t.Errorf("GET without a password: got %v, want NOAUTH", err)
	}
	var unknown x509.UnknownAuthorityError
	if _, err := tls.Dial("tcp", s.Addr(), &tls.Config{RootCAs: x509.NewCertPool()}); !errors.As(err, &unknown) {
		t.Errorf("handshake without the CA: got %v, want an unknown authority", err)
	}
	if _, err := get(func(o *redis.Options) { o.TLSConfig = nil }); err == nil {
		t.Error("GET without TLS: got no error")
	}
}

func TestSentinelsPromoteReplica(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	for name, stop := range map[string]func(*redistest.Server){
		"killed": (*redistest.Server).Kill,
		"frozen": (*redistest.Server).Freeze,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			c := redistest.StartSentinel(t)
			t.Logf("up after %v", time.Since(begin))
			old, replicas := c.Master(), c.Replicas()
			if len(replicas) != 2 || slices.Contains(replicas, old) {
				t.Fatalf("got master %s and replicas %v, want two replicas", old.Addr(), replicas)
			}
			for _, addr := range sentinels(c.URL()) {
				client := redis.NewSentinelClient(&redis.Options{Addr: addr})
				if got, err := client.GetMasterAddrByName(t.Context(), "cloakroom").Result(); err != nil ||
					strings.Join(got, ":") != old.Addr() {
					t.Errorf("sentinel %s: got master %v, %v, want %s", addr, got, err, old.Addr())
				}
				client.Close()
			}
			old.Do("SET", "coat", "blue")
			for _, r := range replicas {
				eventually(t, "the replica has the key", func() bool { return r.Do("GET", "coat") == "$4\r\nblue" })
			}
			begin = time.Now()
			stop(old)
			master := c.WaitForOtherMaster(old)
			t.Logf("another master after %v", time.Since(begin))
			if !slices.Contains(replicas, master) || c.Master() != master {
				t.Errorf("got new master %s, Master returns %s", master.Addr(), c.Master().Addr())
			}
			if got, want := master.Do("GETSET", "coat", "red"), "$4\r\nblue"; got != want {
				t.Errorf("new master: got %q, want %q", got, want)
			}
			eventually(t, "the old master is not among the replicas",
				func() bool { return !slices.Contains(c.Replicas(), old) })
			// The old master returns as a replica.
			if name == "killed" {
				old.Start()
			} else {
				old.Thaw()
			}
			eventually(t, "the old master is a replica with the new one's data", func() bool {
				return slices.Contains(c.Replicas(), old) && old.Do("GET", "coat") == "$3\r\nred"
			})
		})
	}
}

func TestClusterMovesSlotWithKeys(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	begin := time.Now()
	c := redistest.StartCluster(t)
	t.Logf("up after %v", time.Since(begin))
	masters := c.Masters()
	if len(masters) != 3 {
		t.Fatalf("got %d masters, want 3", len(masters))
	}
	from := c.MasterOf("{coat}1")
	to := masters[0]
	if to == from {
		to = masters[1]
	}
	from.Do("SET", "{coat}1", "blue")
	from.Do("SET", "{coat}2", "red", "EX", "1000")
	if got := to.Do("GET", "{coat}1"); !strings.HasPrefix(got, "-MOVED ") || !strings.HasSuffix(got, " "+from.Addr()) {
		t.Errorf("GET before the move: got %q, want MOVED to %s", got, from.Addr())
	}
	c.MoveSlotOf("{coat}1", to)
	if got := c.MasterOf("{coat}2"); got != to {
		t.Errorf("master of the slot: got %s, want %s", got.Addr(), to.Addr())
	}
	for key, want := range map[string]string{"{coat}1": "$4\r\nblue", "{coat}2": "$3\r\nred"} {
		if got := to.Do("GET", key); got != want {
			t.Errorf("GET %s after the move: got %q, want %q", key, got, want)
		}
		if got := from.Do("GET", key); !strings.HasPrefix(got, "-MOVED ") || !strings.HasSuffix(got, " "+to.Addr()) {
			t.Errorf("GET %s at the old node: got %q, want MOVED to %s", key, got, to.Addr())
		}
	}
	if got := to.Do("TTL", "{coat}2"); got == ":-1" {
		t.Error("TTL after the move: got none")
	}
	c.MoveSlotOf("{coat}1", to)
	c.MoveSlotOf("{coat}1", from)
	if got, want := from.Do("GET", "{coat}1"), "$4\r\nblue"; got != want {
		t.Errorf("GET after the way back: got %q, want %q", got, want)
	}
}

func TestClusterPromotesReplica(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	for name, stop := range map[string]func(*redistest.Server){
		"killed": (*redistest.Server).Kill,
		"frozen": (*redistest.Server).Freeze,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := redistest.StartCluster(t)
			client := redis.NewClusterClient(
				&redis.ClusterOptions{Addrs: strings.Split(strings.TrimPrefix(c.URL(), "redis+cluster://"), ",")},
			)
			defer client.Close()
			if err := client.Set(t.Context(), "coat", "blue", 0).Err(); err != nil {
				t.Fatal(err)
			}
			old := c.MasterOf("coat")
			eventually(t, "the replica has the key", func() bool {
				return acknowledged(old)
			})
			begin := time.Now()
			stop(old)
			master := c.WaitForOtherMaster("coat", old)
			t.Logf("another master after %v", time.Since(begin))
			if got, want := master.Do("GET", "coat"), "$4\r\nblue"; got != want {
				t.Errorf("new master: got %q, want %q", got, want)
			}
			if masters := c.Masters(); c.MasterOf("coat") != master || len(masters) != 3 ||
				slices.Contains(masters, old) {
				t.Errorf("got masters %v, want three with the new one and without the old one", masters)
			}
			if name == "killed" {
				old.Start()
			} else {
				old.Thaw()
			}
			eventually(t, "the old master redirects clients to the new one", func() bool {
				return strings.HasSuffix(old.Do("GET", "coat"), " "+master.Addr())
			})
		})
	}
}

// acknowledged reports whether the replicas have everything that the master
// wrote.
func acknowledged(master *redistest.Server) bool {
	var written, acknowledged string
	for line := range strings.Lines(master.Do("INFO", "replication")) {
		line = strings.TrimSpace(line)
		if _, after, ok := strings.Cut(line, ",offset="); ok {
			acknowledged, _, _ = strings.Cut(after, ",")
		}
		if after, ok := strings.CutPrefix(line, "master_repl_offset:"); ok {
			written = after
		}
	}
	return written != "" && written == acknowledged
}

func TestProxyFaults(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	p := redistest.StartProxy(t, s.Addr())
	c := dial(t, p)
	c.wants(t, "PING", "+PONG")
	if n := p.Connections(); n != 1 {
		t.Errorf("got %d connections, want 1", n)
	}

	t.Run("none", func(t *testing.T) {
		client := redis.NewClient(&redis.Options{Addr: p.Addr()})
		defer client.Close()
		much := strings.Repeat("0123456789", 400_000)
		if err := client.Set(t.Context(), "much", much, 0).Err(); err != nil {
			t.Fatal(err)
		}
		if got, err := client.Get(t.Context(), "much").Result(); err != nil || got != much {
			t.Errorf("GET: got %d bytes, %v, want %d", len(got), err, len(much))
		}
		client.Close()
		eventually(t, "one connection again", func() bool { return p.Connections() == 1 })
	})
	t.Run("hang", func(t *testing.T) {
		p.Hang()
		defer p.Heal()
		c.send(t, "SET hung 1")
		other, leaves := dial(t, p), dial(t, p)
		other.send(t, "PING")
		c.wantsSilence(t)
		other.wantsSilence(t)
		if got := s.Do("EXISTS", "hung"); got != ":0" {
			t.Errorf("EXISTS: got %q, want :0", got)
		}
		eventually(t, "three connections", func() bool { return p.Connections() == 3 })
		leaves.Close()
		eventually(t, "the closed one is not counted", func() bool { return p.Connections() == 2 })
		p.Heal()
		c.wantsResponse(t, "+OK")
		other.wantsResponse(t, "+PONG")
	})
	t.Run("drop responses", func(t *testing.T) {
		p.DropResponses()
		defer p.Heal()
		idle := dial(t, p)
		c.send(t, "SET dropped 1")
		eventually(t, "the request has reached the target", func() bool { return s.Do("EXISTS", "dropped") == ":1" })
		c.wantsSilence(t)
		p.Heal()
		c.wantsEnd(t)
		idle.wants(t, "PING", "+PONG")
	})
	t.Run("delay", func(t *testing.T) {
		const d = 200 * time.Millisecond
		c := dial(t, p)
		c.wants(t, "PING", "+PONG")
		p.Delay(d)
		defer p.Heal()
		begin := time.Now()
		c.wants(t, "PING", "+PONG")
		if took := time.Since(begin); took < 2*d {
			t.Errorf("got a response after %v, want at least %v", took, 2*d)
		}
		c.send(t, "PING")
		p.Heal()
		c.wantsResponse(t, "+PONG")
	})
	t.Run("cut", func(t *testing.T) {
		c := dial(t, p)
		c.wants(t, "PING", "+PONG")
		p.Cut()
		defer p.Heal()
		c.wantsEnd(t)
		dial(t, p).wantsEnd(t)
		if n := p.Connections(); n != 0 {
			t.Errorf("got %d connections, want 0", n)
		}
		p.Heal()
		dial(t, p).wants(t, "PING", "+PONG")
	})
	t.Run("target down", func(t *testing.T) {
		c := dial(t, p)
		c.wants(t, "PING", "+PONG")
		s.Kill()
		c.wantsEnd(t)
		dial(t, p).wantsEnd(t)
		s.Start()
		dial(t, p).wants(t, "PING", "+PONG")
	})
}

// client is a connection through the proxy, with inline commands.
type client struct {
	net.Conn
	lines *bufio.Reader
}

func dial(t *testing.T, p *redistest.Proxy) client {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return client{conn, bufio.NewReader(conn)}
}

func (c client) send(t *testing.T, command string) {
	t.Helper()
	if _, err := io.WriteString(c, command+"\r\n"); err != nil {
		t.Fatal(err)
	}
}

func (c client) wantsResponse(t *testing.T, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, err := c.lines.ReadString('\n'); got != want+"\r\n" {
		t.Fatalf("got the response %q, %v, want %q", got, err, want)
	}
}

func (c client) wants(t *testing.T, command, response string) {
	t.Helper()
	c.send(t, command)
	c.wantsResponse(t, response)
}

// wantsSilence fails the test if something arrives within the time that a
// response takes.
func (c client) wantsSilence(t *testing.T) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
	if got, err := c.lines.ReadString('\n'); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %q, %v, want no response", got, err)
	}
}

// wantsEnd fails the test unless the connection is closed.
func (c client) wantsEnd(t *testing.T) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, err := c.lines.ReadString('\n'); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %q, %v, want a closed connection", got, err)
	}
}

func sentinels(url string) []string {
	addrs, _, _ := strings.Cut(strings.TrimPrefix(url, "redis+sentinel://"), "/")
	return strings.Split(addrs, ",")
}

func eventually(t *testing.T, name string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", name)
		}
	}
}
