package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
)

// scrape returns the metrics at an admin address.
func scrape(t *testing.T, admin string) brokertest.Metrics {
	t.Helper()
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("GET /metrics: got %d, want 200:\n%s", resp.StatusCode, text)
	}
	return brokertest.ParseMetrics(t, resp.Body)
}

// wantMetric waits until a sample has a value.
func wantMetric(t *testing.T, admin, sample string, want float64) {
	t.Helper()
	var now brokertest.Metrics
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		now = scrape(t, admin)
		if got, ok := now[sample]; ok && got == want {
			return
		}
	}
	t.Errorf("%s: got %v after a minute, want %v", sample, now.Rise(t, nil, sample), want)
}

func TestMetricsAreServedOnTheAdminListener(t *testing.T) {
	t.Parallel()
	listen, app := freeOrigin(t)
	admin := freeAddr(t)
	provider, echo := brokertest.NewProvider(t, app), brokertest.NewEcho(t)
	text := fmt.Sprintf("server: {listen: %q, admin_listen: %q, public_url: %q}\n"+
		"oidc: {issuer: %q, client_id: spa, client_secret: %q}\n"+
		"routes: [{path: /api/, upstream: %q, token: user}]\n",
		listen, admin, app, provider.Issuer, provider.Client.Secret, echo.URL)
	file := writeFile(t, "cloakroom.yaml", text)
	p := start(t, nil, "serve", "--config", file)
	ready(t, admin)
	p.waitFor(p.stderr, `"msg":"provider found"`)
	wantMetric(t, admin, "cloakroom_sessions", 0)
	b := bfftest.NewBrowser(t, app)
	signIn(t, b, "")
	wantStatus(t, b, "/api/x", 200)
	wantMetric(t, admin, `cloakroom_requests_total{class="2xx",route="/api/"}`, 1)
	wantMetric(t, admin, "cloakroom_provider_up", 1)
	wantMetric(t, admin, "cloakroom_config_last_reload_successful", 1)

	now := scrape(t, admin)
	for sample := range now {
		known := false
		for _, prefix := range []string{"cloakroom_", "go_", "process_", "promhttp_"} {
			known = known || strings.HasPrefix(sample, prefix)
		}
		if !known {
			t.Errorf("%s: the prefix is unknown", sample)
		}
	}
	version, commit := buildInfo()
	if build := now.With("cloakroom_build_info"); len(build) != 1 {
		t.Errorf("cloakroom_build_info: got %v, want one", build)
	} else {
		for _, label := range []string{version, commit} {
			if !strings.Contains(build.String(), fmt.Sprintf("%q", label)) {
				t.Errorf("cloakroom_build_info: got %v, want %q in it", build, label)
			}
		}
	}
	since, hash := now["cloakroom_config_last_reload_success_timestamp_seconds"], now["cloakroom_config_hash"]
	if age := time.Since(time.Unix(int64(since), 0)); age < 0 || age > time.Minute {
		t.Errorf("last reload: got %v ago, want less than a minute", age)
	}
	if hash == 0 {
		t.Error("cloakroom_config_hash: got 0, want a hash")
	}

	overwrite(t, file, text+"nonsense: 1\n")
	wantMetric(t, admin, "cloakroom_config_last_reload_successful", 0)
	if now = scrape(t, admin); now["cloakroom_config_hash"] != hash {
		t.Error("cloakroom_config_hash after a broken file: got another one, want that of the configuration in force")
	}
	overwrite(t, file, text+"session: {idle_timeout: 17m}\n")
	wantMetric(t, admin, "cloakroom_config_last_reload_successful", 1)
	now = scrape(t, admin)
	if now["cloakroom_config_hash"] == hash {
		t.Error("cloakroom_config_hash after a change: got the same, want another one")
	}
	if now["cloakroom_config_last_reload_success_timestamp_seconds"] <= since {
		t.Error("time of the last reload after a change: got the same, want a later one")
	}
}

func TestMetricsNeedTheTokenOffLoopback(t *testing.T) {
	t.Parallel()
	listen, app := freeOrigin(t)
	admin := freeAddr(t)
	start(t, map[string]string{
		"SERVER_LISTEN": listen, "SERVER_PUBLIC_URL": app,
		"SERVER_ADMIN_LISTEN": strings.Replace(admin, "127.0.0.1", "0.0.0.0", 1), "SERVER_ADMIN_TOKEN": "admin-token",
		"OIDC_ISSUER": "https://127.0.0.1:1", "OIDC_CLIENT_ID": "spa", "OIDC_CLIENT_SECRET": "s",
	}, "serve")
	ready(t, admin)
	for authorization, want := range map[string]int{
		"": 401, "Bearer wrong": 401, "Basic admin-token": 401, "Bearer admin-token": 200,
	} {
		req, _ := http.NewRequest("GET", "http://"+admin+"/metrics", nil)
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Authorization %q: got %d, want %d", authorization, resp.StatusCode, want)
		}
		if got := strings.Contains(string(body), "cloakroom_"); got != (want == 200) {
			t.Errorf("Authorization %q: metrics in the response: %v", authorization, got)
		}
	}
}

// Probes have no token. The files of the page are the same everywhere.
func TestFewRespondWithoutTheTokenOffLoopback(t *testing.T) {
	t.Parallel()
	listen, app := freeOrigin(t)
	admin := freeAddr(t)
	start(t, map[string]string{
		"SERVER_LISTEN": listen, "SERVER_PUBLIC_URL": app,
		"SERVER_ADMIN_LISTEN": strings.Replace(admin, "127.0.0.1", "0.0.0.0", 1), "SERVER_ADMIN_TOKEN": "admin-token",
		"OIDC_ISSUER": "https://127.0.0.1:1", "OIDC_CLIENT_ID": "spa", "OIDC_CLIENT_SECRET": "s",
	}, "serve")
	ready(t, admin)
	for request, want := range map[string]int{
		"GET /healthz": 200, "GET /readyz": 200,
		"GET /admin/page/style.css": 200, "GET /admin/page/script.js": 200, "GET /admin/page/page.html": 404,
		"GET /admin/": 401, "POST /admin/page/revoke": 401, "POST /admin/page/sign-out": 401, "GET /metrics": 401,
		"GET /admin/sessions?sub=a": 401, "DELETE /admin/sessions/a": 401, "POST /admin/revoke": 401,
		"GET /admin/why?any=a": 401, "GET /admin/replicas": 401, "POST /admin/reload": 401,
		"GET /admin/reload": 405, "POST /metrics": 405, "POST /admin/": 405, "DELETE /admin/replicas": 405,
		"GET /admin/revoke": 405, "POST /healthz": 405, "GET /admin/unknown": 404,
	} {
		method, path, _ := strings.Cut(request, " ")
		req, err := http.NewRequest(method, "http://"+admin+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: got %d, want %d", request, resp.StatusCode, want)
		}
		// RFC 9110, sections 15.5.2 and 15.5.6
		for status, header := range map[int]string{401: "WWW-Authenticate", 405: "Allow"} {
			if got := resp.Header.Get(header); resp.StatusCode == status && got == "" {
				t.Errorf("%s: %d without %s", request, status, header)
			}
		}
	}
}

func TestOutageOfRedisShowsInMetrics(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	b, admin := signedInWithRedis(t, redis)
	wantMetric(t, admin, "cloakroom_invalidation_up", 1)
	wantMetric(t, admin, "cloakroom_replicas", 1)
	errors := `cloakroom_store_errors_total{operation="get"}`
	wantMetric(t, admin, errors, 0)
	redis.Kill()
	wantMetric(t, admin, "cloakroom_invalidation_up", 0)
	before := scrape(t, admin)
	b.Fetch("GET", "/api/x")
	if got := scrape(t, admin).Rise(t, before, errors); got < 1 {
		t.Errorf("errors of the store in the outage: got a rise by %v, want at least 1", got)
	}
	wantMetric(t, admin, "cloakroom_provider_up", 1)
	redis.Start()
	wantMetric(t, admin, "cloakroom_invalidation_up", 1)
}
