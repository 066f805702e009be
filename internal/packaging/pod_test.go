//go:build packaging

package packaging_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// mounted is a volume of a ConfigMap or Secret as the kubelet lays it out: the
// files are links to the directory ..data, which is a link to their present
// version.
type mounted struct {
	t       *testing.T
	dir     string
	version int
}

func mount(t *testing.T, files map[string]string) *mounted {
	t.Helper()
	m := &mounted{t: t, dir: t.TempDir()}
	m.update(files)
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// update replaces all files at once.
func (m *mounted) update(files map[string]string) {
	m.t.Helper()
	m.version++
	version := fmt.Sprintf("..version-%d", m.version)
	if err := os.Mkdir(filepath.Join(m.dir, version), 0o755); err != nil {
		m.t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(m.dir, version, name), []byte(text), 0o440); err != nil {
			m.t.Fatal(err)
		}
	}
	link := filepath.Join(m.dir, "..data_tmp")
	if err := os.Symlink(version, link); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(link, filepath.Join(m.dir, "..data")); err != nil {
		m.t.Fatal(err)
	}
}

// status returns the status of a GET request, or 0 without a response.
func status(url, token string) int {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return 0
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// What the chart renders is run as a kubelet would run it: the arguments, the
// environment, the files of the ConfigMap and the Secret, the probes, and the
// end.
func TestChartRunsABroker(t *testing.T) {
	t.Parallel()
	port, adminPort := testenv.FreePort(t), testenv.FreePort(t)
	origin := "http://localhost:" + port
	provider, echo, redis := brokertest.NewProvider(t, origin), brokertest.NewEcho(t), redistest.Start(t)
	redis.Do("CONFIG", "SET", "requirepass", "redis-secret")
	all := render(t, "-f", example, "--set", "serviceMonitor.enabled=true",
		"--set", "config.server.listen=0.0.0.0:"+port,
		"--set", "config.server.admin_listen=0.0.0.0:"+adminPort,
		"--set", "config.server.public_url="+origin,
		"--set", "config.oidc.issuer="+provider.Issuer,
		"--set", "config.store.url=redis://"+redis.Addr()+"/0",
		"--set", "config.routes[0].path=/api/,config.routes[0].token=user",
		"--set", "config.routes[0].upstream="+echo.URL)
	pod := object(all.get(t, "Deployment", "cloakroom").at("spec.template.spec").(map[string]any))

	secrets := map[string]string{
		"admin-token":    "first-admin-token-0123456789abcdef\n",
		"client-secret":  provider.Client.Secret,
		"redis-password": "redis-secret",
		"session-keys":   "MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXY=\n",
	}
	secret := mount(t, secrets)
	settings := make(map[string]string)
	for name, text := range all.get(t, "ConfigMap", "cloakroom").at("data").(map[string]any) {
		settings[name] = strings.ReplaceAll(text.(string), "/run/secrets/cloakroom", secret.dir)
	}
	configuration := mount(t, settings)

	var args []string
	for _, arg := range pod.at("containers.0.args").([]any) {
		args = append(args, strings.Replace(arg.(string), "/etc/cloakroom", configuration.dir, 1))
	}
	environment := []string{"KUBERNETES_SERVICE_HOST=10.43.0.1"}
	program := build(t)
	findings, err := command(program, "check", "--offline", "--json", "--config",
		filepath.Join(configuration.dir, "cloakroom.yaml"))
	if err != nil || strings.TrimSpace(findings) != "[]" {
		t.Errorf("cloakroom check: got %v %s, want no finding", err, findings)
	}
	broker := start(t, program, environment, args...)

	probe := func(name string) bool {
		path := pod.at("containers.0." + name + ".httpGet.path").(string)
		if pod.at("containers.0."+name+".httpGet.port") != "admin" {
			t.Fatalf("%s: not at the port admin", name)
		}
		address := net.JoinHostPort("127.0.0.1", fmt.Sprint(pod.at("containers.0.ports.1.containerPort")))
		return status("http://"+address+path, "") == 200
	}
	for _, name := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
		eventually(t, name+" succeeds", func() bool { return probe(name) })
	}
	b := bfftest.NewBrowser(t, "http://localhost:"+fmt.Sprint(pod.at("containers.0.ports.0.containerPort")))
	b.SignIn("alice", "")
	if got := b.Fetch("GET", "/api/x"); got.StatusCode != 200 {
		t.Errorf("a call of a signed-in user: got %d, want 200", got.StatusCode)
	}

	// A rotated Secret and a changed ConfigMap are applied by the same process.
	monitor := all.get(t, "ServiceMonitor", "cloakroom")
	token := monitor.at("spec.endpoints.0.authorization.credentials.key").(string)
	admin := "http://127.0.0.1:" + adminPort + monitor.at("spec.endpoints.0.path").(string)
	if got := status(admin, strings.TrimSpace(secrets[token])); got != 200 {
		t.Errorf("metrics, with the token of the ServiceMonitor: got %d, want 200", got)
	}
	if got := status(admin, ""); got != 401 {
		t.Errorf("metrics, without a token: got %d, want 401", got)
	}
	secrets["admin-token"] = "second-admin-token-0123456789abcdef"
	secret.update(secrets)
	eventually(t, "the admin token of the updated Secret is accepted", func() bool {
		return status(admin, "second-admin-token-0123456789abcdef") == 200
	})
	// 429 if this has tried the second one often.
	if got := status(admin, "first-admin-token-0123456789abcdef"); got != 401 && got != 429 {
		t.Errorf("with the previous admin token: got %d, want 401 or 429", got)
	}
	settings["cloakroom.yaml"] = strings.Replace(settings["cloakroom.yaml"], "path: /api/", "path: /orders/", 1)
	configuration.update(settings)
	eventually(t, "the route of the updated ConfigMap", func() bool {
		return b.Fetch("GET", "/orders/x").StatusCode == 200
	})

	broker.Process.Signal(syscall.SIGTERM)
	eventually(t, "the readiness probe fails", func() bool { return !probe("readinessProbe") })
	if got := status("http://127.0.0.1:"+port+"/bff/session", ""); got == 0 {
		t.Error("the public listener closed before server.shutdown_delay")
	}
	broker.waitEnd(t, time.Duration(pod.at("terminationGracePeriodSeconds").(int))*time.Second)
	for _, unwanted := range []string{`"level":"ERROR"`, `"warning":`} {
		if strings.Contains(broker.log(), unwanted) {
			t.Errorf("the log has %s, want none", unwanted)
		}
	}
}
