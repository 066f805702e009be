//go:build packaging

package packaging_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

const root = "../.."

// dockerfile returns the instructions of the Dockerfile, without comments and
// with continued lines joined.
func dockerfile(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`(?m)^#.*\n`).ReplaceAll(text, nil)
	return strings.Split(strings.TrimSpace(strings.ReplaceAll(string(text), "\\\n", "")), "\n")
}

// instruction returns the arguments of the only instruction with a prefix.
func instruction(t *testing.T, prefix string) string {
	t.Helper()
	var found []string
	for _, line := range dockerfile(t) {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			found = append(found, strings.TrimSpace(rest))
		}
	}
	if len(found) != 1 {
		t.Fatalf("Dockerfile: got %d instructions %s, want 1", len(found), prefix)
	}
	return found[0]
}

// clone clones the commit in the work tree, as a build context has it.
func clone(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "src")
	if _, err := command("git", "clone", "--quiet", root, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := command("git", append([]string{"-C", dir, "-c", "user.name=test", "-c", "user.email=test@example.com"},
		args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// The version is that of the tag, and the build is that of the Dockerfile.
func TestImageKnowsItsVersion(t *testing.T) {
	t.Parallel()
	src, out := clone(t), t.TempDir()
	git(t, src, "tag", "v1.98.7")
	commit := git(t, src, "rev-parse", "HEAD")
	build := func() string {
		t.Helper()
		c := exec.Command("sh", "-c", strings.Replace(instruction(t, "RUN CGO_ENABLED=0"), "/out/", out+"/", 1))
		c.Dir = src
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "TARGETOS=linux", "TARGETARCH=", "GOFLAGS=-buildvcs=auto")
		if text, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		version, err := command(filepath.Join(out, "cloakroom"), "version")
		if err != nil {
			t.Fatal(err)
		}
		return version
	}
	want := regexp.MustCompile(`^cloakroom v1\.98\.7, commit ` + commit +
		` of \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ, go1\.\d+`)
	if got := build(); !want.MatchString(got) {
		t.Errorf("of a tag: got %s, want %s", got, want)
	}
	if got, err := command("ldd", filepath.Join(out, "cloakroom")); err == nil {
		t.Errorf("got a dynamic binary, want a static one: %s", got)
	}
	if err := os.WriteFile(filepath.Join(src, "README.md"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := build(); !strings.HasPrefix(got, "cloakroom v1.98.7+dirty, commit "+commit) {
		t.Errorf("of changed source: got %s, want v1.98.7+dirty", got)
	}
}

// Otherwise the version would end in +dirty.
func TestBuildContextHasAllTrackedFiles(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	for pattern := range strings.Lines(string(text)) {
		pattern = strings.TrimSpace(pattern)
		if strings.HasPrefix(pattern, "#") {
			continue
		}
		if tracked := git(t, root, "ls-files", ":(glob)"+pattern, ":(glob)"+pattern+"/**"); tracked != "" {
			t.Errorf("%s excludes %s", pattern, tracked)
		}
		if pattern == ".git" {
			t.Error("it excludes .git")
		}
	}
}

func TestImageIsOfANumericUserAndHasLabels(t *testing.T) {
	t.Parallel()
	lines := dockerfile(t)
	i := slices.Index(lines, "FROM scratch AS base")
	if i < 0 {
		t.Fatal("Dockerfile: got no stage base, from scratch")
	}
	base := lines[i:slices.Index(lines, "FROM base AS release")]
	for _, want := range []string{"USER 65532:65532", "EXPOSE 8080 9090", `ENTRYPOINT ["/cloakroom"]`,
		"ENV container=oci"} {
		if !slices.Contains(base, want) {
			t.Errorf("Dockerfile: got no %s", want)
		}
	}
	if last := lines[len(lines)-2]; last != "FROM base AS cloakroom" {
		t.Errorf("docker build builds %q, want the stage cloakroom", last)
	}
	labels := base[slices.IndexFunc(base, func(line string) bool { return strings.HasPrefix(line, "LABEL ") })]
	for _, name := range []string{"title", "description", "source", "documentation", "licenses"} {
		if !regexp.MustCompile(`org\.opencontainers\.image\.` + name + `="[^"]+"`).MatchString(labels) {
			t.Errorf("Dockerfile: got no label %s", name)
		}
	}
}

// compose returns docker-compose.yml as the library of Docker Compose loads it.
func compose(t *testing.T) object {
	t.Helper()
	text, err := command(tool(t, "bin/cmd"), filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var project map[string]any
	if err := yaml.Load([]byte(text), &project); err != nil {
		t.Fatal(err)
	}
	return project
}

func TestComposeLimitsAndChecksEveryService(t *testing.T) {
	t.Parallel()
	services := compose(t)["services"].(map[string]any)
	for name, service := range services {
		service := object(service.(map[string]any))
		if service["mem_limit"] == nil {
			t.Errorf("%s: got no mem_limit", name)
		}
		if stage := service.at("build.target"); stage == nil && service.at("healthcheck.test") == nil {
			t.Errorf("%s: got no health check", name)
		} else if stage != nil && (service["read_only"] != true || service["user"] != nil) {
			t.Errorf("%s: got read_only %v and user %v, want true and that of the image", name,
				service["read_only"], service["user"])
		}
	}
	wantValues(t, services, map[string]any{
		"cloakroom.depends_on.redis.condition": "service_healthy",
		"cloakroom.stop_grace_period":          "1m",
		"cloakroom.ports.0.host_ip":            "127.0.0.1",
	})
}

// The broker starts with the configuration, the environment and the Redis of
// docker-compose.yml. It warns of nothing, and the health check of its image
// succeeds.
func TestComposeRunsABroker(t *testing.T) {
	t.Parallel()
	project := compose(t)
	var args []string
	for _, arg := range project.at("services.redis.command").([]any)[1:] {
		args = append(args, arg.(string))
	}
	redis := redistest.Start(t, append(args, "--dir", t.TempDir())...)
	port, adminPort := testenv.FreePort(t), testenv.FreePort(t)
	environment := []string{
		"CLOAKROOM_SERVER_LISTEN=127.0.0.1:" + port, // instead of the default, which could be in use
		"CLOAKROOM_SERVER_ADMIN_LISTEN=127.0.0.1:" + adminPort,
		"CLOAKROOM_FRONTEND_DIR=" + filepath.Join(root, "web/demo"),
	}
	for name, value := range project.at("services.cloakroom.environment").(map[string]any) {
		value := strings.Replace(fmt.Sprint(value), "redis:6379", redis.Addr(), 1)
		environment = append(environment, name+"="+value)
	}
	broker := start(t, build(t), environment, "serve", "--config", filepath.Join(root, "configs/compose.yaml"))

	var check []string
	const healthCheck = `HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/cloakroom",`
	if err := json.Unmarshal([]byte("["+instruction(t, healthCheck)), &check); err != nil {
		t.Fatal(err)
	}
	check[slices.Index(check, "/etc/cloakroom/cloakroom.yaml")] = filepath.Join(root, "configs/compose.yaml")
	eventually(t, "the health check of the image succeeds", func() bool {
		c := exec.Command(broker.Path, check...)
		c.Env = environment
		return c.Run() == nil
	})
	broker.stop(t, time.Minute)
	if log := broker.log(); strings.Contains(log, `"msg":"Redis `) {
		t.Errorf("got a warning about Redis, want none:\n%s", log)
	}
}
