//go:build !unix

package devserver

import (
	"os"
	"os/exec"
)

func setGroup(*exec.Cmd) {}

func terminateGroup(pid int) { killGroup(pid) }

// killGroup kills the process alone: there are no process groups.
func killGroup(pid int) {
	if p, err := os.FindProcess(pid); err == nil {
		p.Kill()
	}
}

func groupAlive(int) bool { return false }

func exitStatus(state *os.ProcessState) int { return state.ExitCode() }

type guard struct{}

func startGuard(int) *guard { return nil }

func (g *guard) stop() {}
