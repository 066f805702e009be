package check

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// TestStoreAndAuditLogHaveToBeWritable checks directories in which the user
// cannot create files, and a file to which the user cannot append.
func TestStoreAndAuditLogHaveToBeWritable(t *testing.T) {
	t.Parallel()
	parent, err := os.MkdirTemp("", "cloakroom-check-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	dir := filepath.Join(parent, "sessions")
	for name, mode := range map[string]os.FileMode{parent: 0o755, dir: 0o755} {
		os.Mkdir(name, mode)
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(parent, "audit.log")
	if err := os.WriteFile(log, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	findings := make(map[string][]Finding)
	checked := make(chan struct{})
	go func() { // until it has checked all
		defer close(checked)
		// Root may write everywhere. Only this thread gets another user, and
		// ends with the goroutine.
		runtime.LockOSThread()
		if os.Getuid() == 0 {
			const other = 65534
			syscall.RawSyscall(syscall.SYS_SETRESUID, other, other, other)
		}
		for _, name := range []string{dir, filepath.Join(dir, "a", "b")} {
			findings[name] = checkFileStore(name)
		}
		for _, name := range []string{log, filepath.Join(dir, "audit.log")} {
			cfg := new(config.Config)
			cfg.Log.Audit = name
			findings[name] = checkAudit(cfg)
		}
	}()
	<-checked
	for name, want := range map[string]string{
		dir: "The directory of the store cannot be used: write to " + dir + ": permission denied.",
		filepath.Join(dir, "a", "b"): "The directory of the store cannot be created: write to " + dir +
			": permission denied.",
		log:                             "write to " + log + ": permission denied.",
		filepath.Join(dir, "audit.log"): "write to " + dir + ": permission denied.",
	} {
		got := findings[name]
		if len(got) != 1 || !strings.EqualFold(got[0].Problem, want) ||
			!strings.Contains(got[0].Fix, "the user that runs the broker") {
			t.Errorf("%s: got %+v, want %q", name, got, want)
		}
	}
}
