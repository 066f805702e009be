//go:build packaging

package packaging_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const unit = "../../configs/systemd/cloakroom.service"

// unitFor returns a copy of the unit for a program at another path.
func unitFor(t *testing.T, program string) string {
	t.Helper()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cloakroom.service")
	replaced := strings.ReplaceAll(string(text), "/usr/bin/cloakroom", program)
	if err := os.WriteFile(file, []byte(replaced), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestUnitIsValid(t *testing.T) {
	t.Parallel()
	// An unknown directive is a message, but no error.
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", unitFor(t, build(t))).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("got %v %s, want no message", err, out)
	}
}

// A fault that passes does not keep the service down.
func TestUnitRestartsWithoutLimit(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	section, _, _ := strings.Cut(string(text), "[Service]")
	if !strings.Contains(section, "\nStartLimitIntervalSec=0\n") {
		t.Errorf("[Unit]: got no StartLimitIntervalSec=0 in\n%s", section)
	}
}

// Exposure is 0 (nothing) to 10, times ten here. What remains are the network,
// which the program is for, and what a program without privileges can do.
func TestUnitExposesLittle(t *testing.T) {
	t.Parallel()
	if _, err := command("systemd-analyze", "security", "--offline=yes", "--threshold=13", unit); err != nil {
		t.Error(err)
	}
}

// The commands in the unit exist, and so do the variables of the configuration.
// The credentials of the variables are loaded.
func TestUnitFitsTheProgram(t *testing.T) {
	t.Parallel()
	program := build(t)
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^Exec\w+=/usr/bin/cloakroom (\w+) --config`).FindAllStringSubmatch(
		string(text), -1) {
		if help, err := command(program, m[1], "--help"); err != nil || !strings.Contains(help, "--config") {
			t.Errorf("cloakroom %s --help: got %v, %s, want a flag --config", m[1], err, help)
		}
	}
	var loaded []string
	for _, m := range regexp.MustCompile(`(?m)^LoadCredential=([\w-]+):/`).FindAllStringSubmatch(string(text), -1) {
		loaded = append(loaded, m[1])
	}
	environment := regexp.MustCompile(`(?m)^Environment=(CLOAKROOM_\w+_FILE)=%d/(.*)$`).FindAllStringSubmatch(
		string(text), -1)
	if len(environment) != len(loaded) {
		t.Errorf("got %d variables for the credentials %v", len(environment), loaded)
	}
	directory := t.TempDir()
	variables := []string{"CLOAKROOM_SERVER_PUBLIC_URL=https://app.example.com", "CLOAKROOM_OIDC_CLIENT_ID=spa"}
	for _, m := range environment {
		if !slices.Contains(loaded, m[2]) {
			t.Errorf("%s: the credential %s is not loaded", m[1], m[2])
		}
		variables = append(variables, m[1]+"="+filepath.Join(directory, m[2]))
	}
	// Without oidc.issuer the program ends. It names the files that are
	// missing.
	broker := start(t, program, variables, "serve")
	if err := <-broker.ended; err == nil {
		t.Error("got no error without oidc.issuer, want one")
	}
	for _, credential := range loaded {
		if !strings.Contains(broker.log(), filepath.Join(directory, credential)) {
			t.Errorf("the program does not read %s:\n%s", credential, broker.log())
		}
	}
}
