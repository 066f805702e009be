package config

import (
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRatesAreWrittenWithTheirTime(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]float64{
		"4/s": 4, "30/m": 0.5, "360/h": 0.1, "1.5/s": 1.5, " 4 / s ": 4, "1e3/s": 1000,
		"": 0, "4": 0, "4/": 0, "/s": 0, "4/d": 0, "4/S": 0, "0/s": 0, "-4/s": 0, "4s": 0, "4/s/s": 0, "Inf/s": 0,
		"NaN/s": 0, "many/s": 0,
	} {
		if got, err := parseRate(text); math.Abs(float64(got)-want) > 1e-9 || (err == nil) != (want > 0) {
			t.Errorf("%q: got %v, %v, want %v", text, got, err, want)
		}
	}
}

func TestLimitsAreReadFromTheFileAndTheEnvironment(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, "server:\n  limits:\n    logins: {rate: 30/m, burst: 7}\nroutes: [{path: /docs/, documents: "+
		"allow}]\n", nil)
	if got := c.Server.Limits.Logins; got.Rate != 0.5 || got.Burst != 7 {
		t.Errorf("got %+v", got)
	}
	if routes := c.routes(slog.Default(), new(Errors)); routes[0].Documents != "allow" {
		t.Errorf("documents: got %q", routes[0].Documents)
	}
	c = mustLoad(t, "server: {limits: {logins: {rate: 30/m, burst: 7}}}",
		map[string]string{"CLOAKROOM_SERVER_LIMITS_LOGINS_RATE": "2/s", "CLOAKROOM_SERVER_LIMITS_LOGINS_BURST": "9"})
	if got := c.Server.Limits.Logins; got.Rate != 2 || got.Burst != 9 {
		t.Errorf("by the environment: got %+v", got)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("configuration", "in_force", c)
	if !strings.Contains(log.String(), `"logins":{"rate":"2/s","burst":9}`) {
		t.Errorf("the log says %s", log.String())
	}
}

func TestMistakesInLimitsNameTheKey(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ file, want string }{
		{"server: {limits: {connections: many}}", "server.limits.connections: \"many\" is not a whole number"},
		{"server: {limits: {header_bytes: large}}", "server.limits.header_bytes: \"large\" is not a size"},
		{"server: {limits: {logins: {rate: 4}}}", "server.limits.logins.rate: \"4\" is not a rate"},
		{"server: {limits: {logins: {rate: fast}}}", "server.limits.logins.rate: \"fast\" is not a rate"},
		{"server: {limits: {logins: {burst: 0}}}", "server.limits.logins.burst: \"0\" is not a whole number"},
		{"server: {limits: {logins: {burst: -3}}}", "server.limits.logins.burst: \"-3\" is not a whole number"},
		{"server: {limits: {logins: 4/s}}", "server.limits.logins: \"4/s\" is not a mapping"},
		{"server: {limits: {logins: {rates: 4/s}}}",
			"server.limits.logins.rates: unknown key; did you mean rate?"},
		{"server: {limits: {login: {rate: 4/s}}}", "server.limits.login: unknown key; did you mean logins?"},
		{"routes: [{path: /docs/, document: allow, token: x}]",
			"routes[0].document: unknown key; did you mean documents?"},
	} {
		if _, err := load(t, test.file, nil); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", test.file, err, test.want)
		}
	}
	if got := serverKey("Limits.Logins.Burst"); got != "server.limits.logins.burst" {
		t.Errorf("the key is %s", got)
	}
}

func TestShutdownDelayIsLongerInKubernetes(t *testing.T) {
	pod := map[string]string{"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
	for name, test := range map[string]struct {
		text string
		env  map[string]string
		want Delay
	}{
		"elsewhere":     {"", nil, 0},
		"in a pod":      {"", pod, Delay(5 * time.Second)},
		"none in a pod": {"server: {shutdown_delay: 0s}\n", pod, 0},
		"set":           {"server: {shutdown_delay: 7s}\n", nil, Delay(7 * time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			if got := mustLoad(t, test.text, test.env).Server.ShutdownDelay; got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// From outside of a container, its loopback interface cannot be reached.
func TestListensOnAllInterfacesInAContainer(t *testing.T) {
	container := map[string]string{"container": "oci"}
	for name, test := range map[string]struct {
		text string
		env  map[string]string
		want string
	}{
		"elsewhere":          {"", nil, "127.0.0.1:8080"},
		"in a container":     {"", container, ":8080"},
		"set in a container": {"server: {listen: 127.0.0.1:8081}\n", container, "127.0.0.1:8081"},
	} {
		t.Run(name, func(t *testing.T) {
			c := mustLoad(t, test.text, test.env)
			if c.Server.Listen != test.want {
				t.Errorf("listen: got %s, want %s", c.Server.Listen, test.want)
			}
			if c.Server.AdminListen != "127.0.0.1:9090" {
				t.Errorf("admin_listen: got %s, want 127.0.0.1:9090", c.Server.AdminListen)
			}
		})
	}
}

func TestFilesAreThoseOfTheConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cloakroom.yaml")
	text := "oidc: {client_secret_file: /s, ca_file: /ca, client_assertion_file: /a}\n" +
		"server: {tls: {cert_file: /c, key_file: /k}}\n" +
		"routes: [{path: /api/, upstream_tls: {ca_file: /r}, accept_bearer: {audience: x, ca_file: /b}}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"CLOAKROOM_STORE_PASSWORD_FILE": "/p", "CLOAKROOM_SESSION_KEYS_FILE": "/keys"}
	got := Files(file, func(name string) string { return env[name] })
	// Without /a, which is read for each request.
	want := []string{"/b", "/c", "/ca", "/k", "/keys", "/p", "/r", "/s", file}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
