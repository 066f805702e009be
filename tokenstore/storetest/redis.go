package storetest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Server is a redis-server of a test's own. It stops when the test ends.
type Server struct {
	t    testing.TB
	addr string
	dir  string
	cmd  *exec.Cmd
}

// StartRedis starts a redis-server on a free port of the loopback interface and waits until it answers. On a machine
// without redis-server the test is skipped, and fails where CLOAKROOM_TEST_ALL is set.
func StartRedis(t testing.TB) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("CLOAKROOM_TEST_ALL") != "" {
			t.Fatal("redis-server is not installed, and CLOAKROOM_TEST_ALL asks for all tests")
		}
		skipLoudly(t, "redis-server is not installed, so this is not tested against Redis; make test installs it")
	}
	s := &Server{t: t, addr: freeAddr(t), dir: t.TempDir()}
	s.Start()
	t.Cleanup(func() {
		if s.cmd != nil {
			s.Kill()
		}
	})
	return s
}

// URL is what store.url takes.
func (s *Server) URL() string { return "redis://" + s.addr + "/0" }

// Addr is the server's host:port.
func (s *Server) Addr() string { return s.addr }

// Start starts the server again, on the same address and with what it had saved, after Kill.
func (s *Server) Start() {
	s.t.Helper()
	_, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	var out bytes.Buffer
	s.cmd = exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always")
	s.cmd.Stdout, s.cmd.Stderr = &out, &out
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		if s.Do("PING") == "+PONG" {
			return
		}
		if time.Now().After(deadline) {
			s.cmd.Process.Kill()
			s.cmd.Wait()
			s.t.Fatalf("redis-server on %s does not answer:\n%s", s.addr, out.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Kill ends the server at once, as a crash would.
func (s *Server) Kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s.cmd = nil
}

// Freeze stops the server without closing its connections, until Thaw.
func (s *Server) Freeze() { s.cmd.Process.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen server go on.
func (s *Server) Thaw() { s.cmd.Process.Signal(syscall.SIGCONT) }

// Do sends one command and returns what the server answers, as it comes over the wire without the last line end; empty where it does not answer.
func (s *Server) Do(args ...string) string {
	conn, err := net.DialTimeout("tcp", s.addr, time.Second)
	if err != nil {
		return ""
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	var cmd strings.Builder
	fmt.Fprintf(&cmd, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&cmd, "$%d\r\n%s\r\n", len(a), a)
	}
	// QUIT makes the server close the connection after the answer, whose end is then known without parsing it.
	cmd.WriteString("*1\r\n$4\r\nQUIT\r\n")
	if _, err := conn.Write([]byte(cmd.String())); err != nil {
		return ""
	}
	var answer bytes.Buffer
	answer.ReadFrom(conn)
	return strings.TrimSuffix(answer.String(), "\r\n+OK\r\n")
}

// skipLoudly skips the test and says so where it is seen: go test shows nothing of what a package that passes prints, so it is written to
// go test's own standard error.
func skipLoudly(t testing.TB, why string) {
	t.Helper()
	if stderr, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/2", os.Getppid()), os.O_WRONLY|os.O_APPEND, 0); err == nil {
		fmt.Fprintf(stderr, "SKIPPED %s: %s\n", t.Name(), why)
		stderr.Close()
	}
	t.Skip(why)
}

func freeAddr(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
