package tokenstore_test

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/tokenstore"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

func openFile(t testing.TB, dir string) *tokenstore.File {
	t.Helper()
	store, err := tokenstore.NewFile(tokenstore.FileConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

func TestFile(t *testing.T) {
	t.Parallel()
	storetest.Run(t, openFile(t, t.TempDir()))
}

func TestFileOutlivesItsProcess(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new", "directory")
	store := openFile(t, dir)
	create := func(key string, ttl time.Duration) {
		t.Helper()
		if created, err := store.Create(t.Context(), key, []byte("value of "+key), ttl); !created || err != nil {
			t.Fatalf("Create: got %v, %v", created, err)
		}
	}
	create("session:a", time.Minute)
	create("session:short", 50*time.Millisecond)
	if err := store.Add(t.Context(), map[string]string{"user:x": "a"}, time.Minute); err != nil {
		t.Fatal(err)
	}
	if acquired, err := store.Acquire(t.Context(), "refresh:a", "first", time.Minute); !acquired || err != nil {
		t.Fatalf("Acquire: got %v, %v", acquired, err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(60 * time.Millisecond)

	store = openFile(t, dir)
	value, ttl, found, err := store.Get(t.Context(), "session:a")
	if err != nil || !found || string(value) != "value of session:a" {
		t.Errorf("Get: got %q, %v, %v", value, found, err)
	}
	if ttl > time.Minute || ttl < 30*time.Second {
		t.Errorf("the time to live is %v, want somewhat less than a minute", ttl)
	}
	if _, _, found, _ := store.Get(t.Context(), "session:short"); found {
		t.Error("a record that expired while no process ran is there")
	}
	if members, err := store.Members(t.Context(), "user:x"); err != nil || len(members) != 1 || members[0] != "a" {
		t.Errorf("Members: got %q, %v", members, err)
	}
	if acquired, err := store.Acquire(t.Context(), "refresh:a", "second", time.Minute); !acquired || err != nil {
		t.Errorf("Acquire: got %v, %v; the holder has ended", acquired, err)
	}
}

func TestFileIsPrivate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "store")
	openFile(t, dir)
	for name, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, "sessions.db"): 0o600} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has the mode %v, want %v", name, got, want)
		}
	}
}

// A database that was copied from elsewhere may be readable by others.
func TestFileBecomesPrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	openFile(t, dir).Close()
	name := filepath.Join(dir, "sessions.db")
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	openFile(t, dir)
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("got the mode %v, want -rw-------", got)
	}
}

// A copy may be incomplete. The process must not crash then.
func TestFileReportsAnIncompleteDatabase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	store := openFile(t, dir)
	if _, err := store.Create(t.Context(), "key", make([]byte, 1<<16), time.Hour); err != nil {
		t.Fatal(err)
	}
	store.Close()
	if err := os.Truncate(filepath.Join(dir, "sessions.db"), 8192); err != nil {
		t.Fatal(err)
	}
	_, err := tokenstore.NewFile(tokenstore.FileConfig{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "incomplete") {
		t.Errorf("got %v, want an error that the database is incomplete", err)
	}
}

func TestFileIsForOneProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	openFile(t, dir)
	_, err := tokenstore.NewFile(tokenstore.FileConfig{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("got %v, want an error that names the directory", err)
	}
}

func TestFileReportsWhereItCannotWrite(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	notDatabase := t.TempDir()
	if err := os.WriteFile(filepath.Join(notDatabase, "sessions.db"), []byte(strings.Repeat("x", 1<<16)),
		0o600); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{
		"a file": file, "below a file": filepath.Join(file, "x"), "no disk": "/proc/cloakroom",
		"no database": notDatabase, "none": "",
	} {
		if store, err := tokenstore.NewFile(tokenstore.FileConfig{Dir: dir}); err == nil {
			store.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

// fileProcess is this test as another process, which fills a store.
const fileProcess = "CLOAKROOM_TEST_FILE"

// TestFileInAnotherProcess is not a test of its own: it writes records until it
// is killed, and prints the number of each one that was written.
func TestFileInAnotherProcess(t *testing.T) {
	dir, limit, isChild := strings.Cut(os.Getenv(fileProcess), "|")
	if !isChild {
		return
	}
	if limit != "" {
		signal.Ignore(syscall.SIGXFSZ)
		most := &syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, most); err != nil {
			t.Fatal(err)
		}
	}
	store, err := tokenstore.NewFile(tokenstore.FileConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	value := []byte(strings.Repeat("v", 2000))
	for n := 0; ; n++ {
		created, err := store.Create(t.Context(), fmt.Sprintf("session:%d", n), value, time.Hour)
		if err != nil {
			_, _, found, readErr := store.Get(t.Context(), "session:0")
			fmt.Printf("failed: %v; read: %v %v\n", err, found, readErr)
			os.Exit(0)
		}
		if !created {
			t.Fatal("not created")
		}
		fmt.Printf("written %d\n", n)
	}
}

func startFileProcess(t *testing.T, setting string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestFileInAnotherProcess$")
	cmd.Env = append(os.Environ(), fileProcess+"="+setting)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	return cmd, bufio.NewScanner(out)
}

func TestFileLosesNothingInAKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd, lines := startFileProcess(t, dir+"|")
	written := -1
	for lines.Scan() {
		if _, err := fmt.Sscanf(lines.Text(), "written %d", &written); err != nil {
			t.Fatalf("the process printed %q", lines.Text())
		}
		if written == 50 {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	if written < 50 {
		t.Fatalf("the process wrote %d records", written)
	}
	store := openFile(t, dir)
	for n := range written + 1 {
		if _, _, found, err := store.Get(t.Context(), fmt.Sprintf("session:%d", n)); !found || err != nil {
			t.Fatalf("record %d of %d: got %v, %v", n, written, found, err)
		}
	}
}

func TestFileSurvivesAFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd, lines := startFileProcess(t, dir+"|full")
	var last string
	written := 0
	for lines.Scan() {
		last = lines.Text()
		if strings.HasPrefix(last, "written") {
			written++
		}
	}
	cmd.Wait()
	if !strings.HasPrefix(last, "failed: ") || !strings.HasSuffix(last, "read: true <nil>") {
		t.Fatalf("the process ended with %q, want a failed write and a read that works", last)
	}
	store := openFile(t, dir) // without the limit
	for n := range written {
		if _, _, found, err := store.Get(t.Context(), fmt.Sprintf("session:%d", n)); !found || err != nil {
			t.Fatalf("record %d of %d: got %v, %v", n, written, found, err)
		}
	}
	if created, err := store.Create(t.Context(), "session:new", []byte("x"), time.Minute); !created || err != nil {
		t.Errorf("with room on the disk: got %v, %v", created, err)
	}
}

func TestFileAnnouncesWrites(t *testing.T) {
	t.Parallel()
	store := openFile(t, t.TempDir())
	var changes atomic.Int32
	valid := make(chan struct{}, 1)
	go store.Watch(t.Context(), func(key string) {
		if key == "session:a" {
			changes.Add(1)
		}
	}, func(time.Time) { valid <- struct{}{} })
	<-valid
	ctx := t.Context()
	store.Create(ctx, "session:a", []byte("1"), time.Minute)
	store.Replace(ctx, "session:a", []byte("1"), []byte("2"))
	store.Touch(ctx, "session:a", time.Hour)
	store.Replace(ctx, "session:a", []byte("other"), []byte("3")) // writes nothing
	store.Delete(ctx, "session:a")
	if n := changes.Load(); n != 4 {
		t.Errorf("%d writes were announced, want 4", n)
	}
}

func TestFileRemovesWhatHasExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := tokenstore.NewFile(tokenstore.FileConfig{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		for n, ttl := range []time.Duration{30 * time.Second, 90 * time.Second} {
			key := fmt.Sprintf("session:%d", n)
			if _, err := store.Create(t.Context(), key, nil, ttl); err != nil {
				t.Fatal(err)
			}
			if err := store.Add(t.Context(), map[string]string{"user:x": key}, ttl); err != nil {
				t.Fatal(err)
			}
		}
		for minute, want := range [][2]int{{2, 1}, {1, 1}, {0, 0}} {
			records, sets := store.Len()
			if got := [2]int{records, sets}; got != want {
				t.Errorf("minute %d: %d records and %d sets, want %v", minute, records, sets, want)
			}
			time.Sleep(61 * time.Second)
			synctest.Wait()
		}
	})
}
