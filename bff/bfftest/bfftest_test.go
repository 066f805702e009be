package bfftest_test

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
)

func TestProviderThatIsDownRejectsRefresh(t *testing.T) {
	t.Parallel()
	app := bfftest.NewServer(t, nil)
	browser := bfftest.NewBrowser(t, app.URL)
	browser.SignIn("bob", "")

	app.Provider.SetDown(t, true)
	if response := browser.Fetch("POST", "/bff/session/refresh"); response.StatusCode != 503 {
		t.Errorf("refresh while the provider is down: got %d, want 503:\n%s", response.StatusCode, response.Text)
	}
	before := app.Provider.Refreshes()
	app.Provider.SetDown(t, false)
	response := browser.Fetch("POST", "/bff/session/refresh")
	if response.StatusCode != 200 {
		t.Errorf("refresh: got %d, want 200:\n%s", response.StatusCode, response.Text)
	}
	if n := app.Provider.Refreshes(); n <= before {
		t.Errorf("got %d refresh requests, want more than %d", n, before)
	}
}

func TestServerUsesConfigurationOfTest(t *testing.T) {
	t.Parallel()
	frontend := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the app") })
	app := bfftest.NewServer(t, func(cfg *bff.Config) { cfg.Frontend = frontend })
	response := bfftest.NewBrowser(t, app.URL).Navigate("/")
	if response.Text != "the app" {
		t.Errorf("GET /: got %q, want the app", response.Text)
	}
}

// The Example compiles and runs in another module, in which the internal
// packages of this one cannot be imported.
func TestExampleRunsInAnotherModule(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	gomod := read(t, filepath.Join(root, "go.mod"))
	const module = "github.com/cloakroom-bff/cloakroom"
	_, requirements, _ := strings.Cut(gomod, "module "+module)
	write(t, filepath.Join(dir, "go.mod"), "module example.com/outside\n"+requirements+
		"\nrequire "+module+" v0.0.0\nreplace "+module+" => "+root+"\n")
	write(t, filepath.Join(dir, "go.sum"), read(t, filepath.Join(root, "go.sum")))
	for _, name := range []string{"example_test.go", "t_test.go"} {
		write(t, filepath.Join(dir, name), read(t, name))
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-v", "-mod=mod", "-run", "^Example$", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOPROXY=off", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: Example") {
		t.Errorf("go test in another module: %v\n%s", err, out)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
