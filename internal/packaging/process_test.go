//go:build packaging

package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// build builds the program as a release is built.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "cloakroom")
	c := exec.Command("go", "build", "-trimpath", "-o", program, "../../cmd/cloakroom")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// process is a running program. It is killed when the test ends.
type process struct {
	*exec.Cmd
	logFile string
	ended   chan error // gets the error of the program when it has ended
}

// start starts a program with nothing but this environment.
func start(t *testing.T, program string, environment []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(program, args...), logFile: filepath.Join(t.TempDir(), "log"),
		ended: make(chan error, 1)}
	log, err := os.Create(p.logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.Env, p.Stderr = environment, log
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.Wait() }() // until the program ends
	t.Cleanup(func() {
		p.Process.Kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", filepath.Base(program), p.log())
		}
	})
	return p
}

// log returns what the program has logged.
func (p *process) log() string {
	text, err := os.ReadFile(p.logFile)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// stop sends SIGTERM. The program has to end without an error in this time.
func (p *process) stop(t *testing.T, limit time.Duration) {
	t.Helper()
	p.Process.Signal(syscall.SIGTERM)
	p.waitEnd(t, limit)
}

// waitEnd waits until the program ends, without an error.
func (p *process) waitEnd(t *testing.T, limit time.Duration) {
	t.Helper()
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("the program ended with %v, want no error", err)
		}
	case <-time.After(limit):
		t.Errorf("the program did not end within %v", limit)
	}
}

// eventually waits until the condition holds.
func eventually(t *testing.T, name string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if condition() {
			return
		}
	}
	t.Fatalf("not within a minute: %s", name)
}
