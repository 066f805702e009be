//go:build unix

package devserver

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

func setGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func terminateGroup(pid int) { syscall.Kill(-pid, syscall.SIGTERM) }

func killGroup(pid int) { syscall.Kill(-pid, syscall.SIGKILL) }

// groupAlive reports whether the group has a process, or one that has ended and
// that its parent has not awaited.
func groupAlive(pid int) bool { return syscall.Kill(-pid, 0) == nil }

func exitStatus(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

// guard is a process that ends a process group when this process dies, however
// it dies: then its standard input ends.
type guard struct {
	cmd  *exec.Cmd
	hold *os.File
}

// startGuard returns nil if there is no guard: nothing depends on it as long as
// this process ends in order.
func startGuard(group int) *guard {
	in, hold, err := os.Pipe()
	if err != nil {
		return nil
	}
	defer in.Close()
	cmd := exec.Command("/bin/sh", "-c", `read -r _; kill -TERM "-$1"; sleep 5; kill -KILL "-$1"`,
		"cloakroom-guard", strconv.Itoa(group))
	cmd.Stdin = in
	setGroup(cmd)
	if err := cmd.Start(); err != nil {
		hold.Close()
		return nil
	}
	return &guard{cmd, hold}
}

func (g *guard) stop() {
	if g == nil {
		return
	}
	killGroup(g.cmd.Process.Pid)
	g.cmd.Wait()
	g.hold.Close()
}
