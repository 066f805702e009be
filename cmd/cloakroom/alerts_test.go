package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

const (
	rulesFolder = "../../configs/prometheus"
	dashboard   = "../../configs/grafana/cloakroom.json"
)

// TestAlertRules runs the unit tests of the rules.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("promtool", "test", "rules", "rules_test.yaml")
	cmd.Dir = rulesFolder
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("promtool (Debian package prometheus): %v\n%s", err, out)
	}
}

// metricName is a metric of ours in a query.
var metricName = regexp.MustCompile(`cloakroom_[a-z_]+`)

// TestRulesAndDashboardsUseExistingMetrics compares them with docs/metrics.md,
// which lists all.
func TestRulesAndDashboardsUseExistingMetrics(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{rulesFolder + "/rules.yaml", rulesFolder + "/rules_test.yaml", dashboard} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, metric := range metricName.FindAllString(string(text), -1) {
			metric = strings.TrimSuffix(metric, "_bucket")
			if !strings.Contains(string(page), "| `"+metric+"` |") {
				t.Errorf("%s: there is no metric %s", name, metric)
			}
		}
	}
}

// TestEachAlertHasARunbook looks for the paragraph that runbook_url names.
func TestEachAlertHasARunbook(t *testing.T) {
	t.Parallel()
	rules, err := os.ReadFile(rulesFolder + "/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`(?m)alert: (\w+)$`).FindAllStringSubmatch(string(rules), -1)
	if len(alerts) == 0 {
		t.Fatal("no alerts")
	}
	for _, alert := range alerts {
		url := "/docs/operations.md#" + strings.ToLower(alert[1]) + "\n"
		if !strings.Contains(string(rules), url) {
			t.Errorf("%s: no runbook_url ends with %q", alert[1], url)
		}
		if !strings.Contains(string(page), "\n### "+alert[1]+"\n") {
			t.Errorf("%s: docs/operations.md has no such heading", alert[1])
		}
	}
}

// promServer is a Prometheus server that scrapes replicas, with the rules of
// configs/prometheus and times of seconds instead of minutes.
type promServer struct {
	t       *testing.T
	url     string
	targets string // a file
	stop    func()
}

// inMinutes are the times in the rules.
var inMinutes = regexp.MustCompile(`\[\d+m\]|for: \d+m`)

func startPrometheus(t *testing.T) *promServer {
	t.Helper()
	rules, err := os.ReadFile(filepath.Join(rulesFolder, "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fast := inMinutes.ReplaceAllStringFunc(string(rules), func(text string) string {
		if strings.HasPrefix(text, "[") {
			return "[5s]"
		}
		return "for: 1s"
	})
	writeIn(t, dir, "rules.yaml", fast)
	writeIn(t, dir, "prometheus.yaml", `global: {scrape_interval: 500ms, evaluation_interval: 500ms}
rule_files: [rules.yaml]
scrape_configs:
  - job_name: cloakroom
    file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]
`)
	addr := freeAddr(t)
	p := &promServer{t: t, url: "http://" + addr, targets: filepath.Join(dir, "targets.json")}
	cmd := exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yaml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr, "--log.level=warn")
	var log lockedBuffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (Debian package prometheus)", err)
	}
	p.stop = sync.OnceFunc(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		if t.Failed() {
			t.Logf("Prometheus: %s", log.String())
		}
	})
	t.Cleanup(p.stop)
	return p
}

func writeIn(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// scrapes sets the replicas that are scraped.
func (p *promServer) scrapes(replicas ...*replica) {
	p.t.Helper()
	targets := []string{}
	for _, r := range replicas {
		targets = append(targets, r.admin)
	}
	text, err := json.Marshal([]map[string]any{{"targets": targets}})
	if err != nil {
		p.t.Fatal(err)
	}
	writeIn(p.t, filepath.Dir(p.targets), "targets.new", string(text))
	if err := os.Rename(filepath.Join(filepath.Dir(p.targets), "targets.new"), p.targets); err != nil {
		p.t.Fatal(err)
	}
}

// firing returns the names of the alerts that fire.
func (p *promServer) firing() map[string]bool {
	resp, err := http.Get(p.url + "/api/v1/alerts")
	if err != nil {
		return nil // not listening yet
	}
	defer resp.Body.Close()
	var body struct {
		Data struct {
			Alerts []struct {
				Labels map[string]string
				State  string
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		return nil
	}
	names := make(map[string]bool)
	for _, a := range body.Data.Alerts {
		if a.State == "firing" {
			names[a.Labels["alertname"]] = true
		}
	}
	return names
}

// TestAlertsFire breaks what each alert is about, and waits until it fires in a
// real Prometheus. Then it repairs that, and waits until the alert has ended.
func TestAlertsFire(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	w := newAlertWorld(t)
	for _, test := range []struct {
		alert  string
		damage func() // called until the alert fires
		repair func()
	}{
		{"CloakroomErrors", w.failAPI, w.mendAPI},
		{"CloakroomUpstreamDown", w.callStopped, w.startStopped},
		{"CloakroomProviderDown", w.failTokenRequests, w.mendTokenRequests},
		{"CloakroomSessionsRefused", w.refuseRefreshTokens, w.provider.Behave},
		{"CloakroomLoginsFail", w.failLogins, w.provider.Behave},
		{"CloakroomForeignCookies", w.sendForeignCookie, w.stopOther},
		{"CloakroomAttacked", w.attack, func() {}},
		{
			"CloakroomReloadFailed",
			sync.OnceFunc(func() { overwrite(t, w.file, "unknown: true\n") }),
			func() { overwrite(t, w.file, "{}\n") },
		},
		{
			"CloakroomReplicasDiffer",
			func() { w.startOther("SESSION_MAX_LIFETIME", "3h") }, w.stopOther,
		},
		{"CloakroomCertificateExpires", w.startExpiring, w.stopOther},
		{"CloakroomConnectionsNearLimit", w.openStreams, w.stopOther},
		{"CloakroomConnectionsRefused", w.exceedConnections, w.stopOther},
		{"CloakroomLogLinesDropped", w.floodUnreadLog, w.stopOther},
		{"CloakroomSlow", w.slowStore, func() {}},
		{"CloakroomStoreFails", w.freezeStore, w.redis.Thaw},
		{"CloakroomInvalidationDown", w.redis.Freeze, w.redis.Thaw},
		{"CloakroomAbsent", func() { w.scrapes() }, func() { w.scrapes(w.replicas...) }},
		{"CloakroomReplicaDown", sync.OnceFunc(w.replicas[1].kill), w.restart},
	} {
		ok := t.Run(test.alert, func(t *testing.T) {
			eventually(t, 90*time.Second, "the alert fires", func() bool {
				test.damage()
				return w.firing()[test.alert]
			})
			if test.alert == "CloakroomCertificateExpires" { // now every panel has something to show
				for panel, exprs := range queries(t) {
					for _, query := range exprs {
						w.wantResult(t, panel, query)
					}
				}
			}
			test.repair()
			eventually(t, 90*time.Second, "the alert has ended", func() bool { return !w.firing()[test.alert] })
		})
		if !ok {
			t.Fatalf("after %s these fire: %v", test.alert, w.firing())
		}
	}
}

// queries returns the queries of the dashboard's panels, by the panel's title.
func queries(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(dashboard)
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	all := make(map[string][]string)
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			query := strings.NewReplacer("$__rate_interval", "5m", "$job", "cloakroom").Replace(target.Expr)
			all[panel.Title] = append(all[panel.Title], query)
		}
	}
	return all
}

// wantResult fails the test unless a query has a result.
func (p *promServer) wantResult(t *testing.T, panel, query string) {
	t.Helper()
	resp, err := http.Get(p.url + "/api/v1/query?query=" + url.QueryEscape(query))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body struct {
		Status, Error string
		Data          struct{ Result []any }
	}
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	if body.Status != "success" {
		t.Errorf("%s: %s: %s", panel, query, body.Error)
	} else if len(body.Data.Result) == 0 {
		t.Errorf("%s: no result of %s", panel, query)
	}
}

// alertWorld is a fleet of two replicas that Prometheus scrapes, and what can
// be damaged in it.
type alertWorld struct {
	*fleet
	*promServer
	t     *testing.T
	redis *redistest.Server
	file  string // the configuration of the first replica, besides the environment
	alice *userSession

	expired  []*userSession // whose access tokens have expired
	apiFails atomic.Bool
	stopped  string // the address of an upstream that does not run
	settings map[string]string

	other *replica // a third one, or nil
	end   func()   // of what uses it
}

func newAlertWorld(t *testing.T) *alertWorld {
	t.Helper()
	w := &alertWorld{
		fleet: newFleet(t, nil), t: t, redis: redistest.Start(t), stopped: freeAddr(t),
	}
	w.promServer = startPrometheus(t)
	w.file = writeFile(t, "cloakroom.yaml", "{}\n")
	api := brokertest.NewEcho(t)
	api.Handler = func(rw http.ResponseWriter, r *http.Request) {
		switch {
		case w.apiFails.Load():
			rw.WriteHeader(http.StatusInternalServerError)
		case strings.HasPrefix(r.URL.Path, "/stream/"):
			rw.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(rw, firstEvent)
			http.NewResponseController(rw).Flush()
			<-r.Context().Done()
		}
	}
	w.settings = map[string]string{
		"SERVER_LISTEN": "127.0.0.1:0", "SERVER_ADMIN_LISTEN": "127.0.0.1:0", "SERVER_PUBLIC_URL": w.fleet.url,
		"OIDC_ISSUER": w.provider.Issuer, "OIDC_CLIENT_ID": w.provider.Client.ID,
		"OIDC_CLIENT_SECRET": w.provider.Client.Secret, "OIDC_WAIT": "500ms",
		"STORE_URL": w.redis.URL(), "SESSION_KEYS": goodKey,
		"SERVER_LIMITS_LOGINS_RATE": "1000/s", "SERVER_LIMITS_LOGINS_BURST": "100000",
		"ROUTES": fmt.Sprintf("[{path: /api/, upstream: %[1]s, token: user}, "+
			"{path: /stream/, upstream: %[1]s, token: user}, "+
			"{path: /stopped/, upstream: \"http://%[2]s\", token: none}]", api.URL, w.stopped),
	}
	second := maps.Clone(w.settings) // keeps its addresses when it is restarted
	second["SERVER_LISTEN"], second["SERVER_ADMIN_LISTEN"] = freeAddr(t), freeAddr(t)
	w.replicas = []*replica{
		startReplica(t, w.provider, w.settings, "--config", w.file), startReplica(t, w.provider, second),
	}
	for _, r := range w.replicas {
		r.waitReady(t)
	}
	w.balance()
	t.Cleanup(w.promServer.stop) // before the replicas are stopped
	w.scrapes(w.replicas...)
	w.alice = w.signIn(t, "alice", devidp.Hooks{})
	eventually(t, 60*time.Second, "Prometheus runs and no alert fires", func() bool {
		names := w.firing()
		return names != nil && len(names) == 0
	})
	return w
}

// startOther starts a third replica with other settings, unless it runs.
func (w *alertWorld) startOther(names ...string) {
	w.t.Helper()
	if w.other != nil {
		return
	}
	settings := maps.Clone(w.settings)
	for pair := range slices.Chunk(names, 2) {
		settings[pair[0]] = pair[1]
	}
	w.other = startReplica(w.t, w.provider, settings)
	w.t.Cleanup(w.promServer.stop) // before the replica is stopped
	w.other.waitReady(w.t)
	w.scrapes(append(w.replicas, w.other)...)
}

func (w *alertWorld) stopOther() {
	w.t.Helper()
	if w.end != nil {
		w.end()
		w.end = nil
	}
	w.scrapes(w.replicas...)
	w.other.stop(w.t)
	w.other = nil
}

func (w *alertWorld) failAPI() {
	w.apiFails.Store(true)
	w.call(w.replicas[0], w.alice, "GET", "/api/x")
}

func (w *alertWorld) mendAPI() { w.apiFails.Store(false) }

func (w *alertWorld) callStopped() {
	for _, r := range w.replicas {
		w.call(r, w.alice, "GET", "/stopped/x")
	}
}

func (w *alertWorld) startStopped() {
	l, err := net.Listen("tcp", w.stopped)
	if err != nil {
		w.t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	go server.Serve(l) // until the test ends
	w.t.Cleanup(func() { server.Close() })
	w.callStopped()
}

// failTokenRequests lets the provider respond with 503 to refreshes on both
// replicas.
func (w *alertWorld) failTokenRequests() {
	if len(w.expired) == 0 {
		for range 10 {
			w.expired = append(w.expired, w.signInExpired(w.t))
		}
		w.respondToRefresh(http.StatusServiceUnavailable, "")
	}
	for i, u := range w.expired {
		w.call(w.replicas[i%2], u, "GET", "/api/x")
	}
}

// mendTokenRequests ends that. A replica learns of it by its next token
// request.
func (w *alertWorld) mendTokenRequests() {
	w.provider.Behave()
	for i, u := range w.expired {
		eventually(w.t, 30*time.Second, "a refresh succeeds", func() bool {
			return w.call(w.replicas[i%2], u, "GET", "/api/x").status == http.StatusOK
		})
	}
}

func (w *alertWorld) respondToRefresh(status int, body string) {
	w.interceptRefresh(func(_ int, rw http.ResponseWriter, _ *http.Request, _ http.Handler) {
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(status)
		io.WriteString(rw, body)
	})
}

func (w *alertWorld) refuseRefreshTokens() {
	var users []*userSession
	for range 20 {
		users = append(users, w.signIn(w.t, "bob", devidp.Hooks{}))
	}
	w.respondToRefresh(http.StatusBadRequest, `{"error":"invalid_grant"}`)
	for _, u := range users {
		w.call(w.replicas[0], u, "POST", "/bff/session/refresh")
	}
}

func (w *alertWorld) failLogins() {
	w.provider.SetHooks(devidp.Hooks{
		EditIDToken: func(_, claims map[string]any) { claims["nonce"] = "of another login" },
	})
	for range 5 {
		bfftest.NewBrowser(w.t, w.fleet.url).SignIn("alice", "")
	}
}

// sendForeignCookie sends the cookie of this app to another one with the same
// keys.
func (w *alertWorld) sendForeignCookie() {
	w.startOther("OIDC_CLIENT_ID", "another")
	w.call(w.other, w.alice, "GET", "/api/x")
}

func (w *alertWorld) attack() {
	for range 20 {
		w.send(w.t.Context(), w.replicas[0], w.alice.cookies, "POST", "/api/x",
			"X-Csrf", "", "Sec-Fetch-Site", "cross-site")
	}
}

func (w *alertWorld) startExpiring() {
	if w.other == nil {
		cert, key := newPair(w.t, 1, time.Now().Add(time.Hour))
		w.startOther("SERVER_TLS_CERT_FILE", writeFile(w.t, "cert.pem", cert),
			"SERVER_TLS_KEY_FILE", writeFile(w.t, "key.pem", key))
	}
}

// openStreams uses all connections of a replica.
func (w *alertWorld) openStreams() {
	if w.other != nil {
		return
	}
	w.startOther("SERVER_LIMITS_CONNECTIONS", "20")
	ctx, cancel := context.WithCancel(w.t.Context())
	var streams sync.WaitGroup
	for range 20 {
		streams.Go(func() { w.send(ctx, w.other, w.alice.cookies, "GET", "/stream/x") }) // until cancel
	}
	w.end = func() {
		cancel()
		streams.Wait()
	}
}

// exceedConnections opens more connections than the streams leave free, also if
// some of these have ended.
func (w *alertWorld) exceedConnections() {
	w.openStreams()
	for range 30 {
		if conn, err := net.Dial("tcp", w.other.addr); err == nil {
			defer conn.Close()
		}
	}
	time.Sleep(200 * time.Millisecond)
}

// floodUnreadLog starts a replica whose log is not read, and has it write
// more than it buffers.
func (w *alertWorld) floodUnreadLog() {
	if w.other == nil {
		unread, stderr, err := os.Pipe()
		if err != nil {
			w.t.Fatal(err)
		}
		r := &replica{addr: freeAddr(w.t), admin: freeAddr(w.t), ended: make(chan struct{})}
		r.cmd = brokerCommand(w.t, "serve")
		for name, value := range w.settings {
			switch name {
			case "SERVER_LISTEN":
				value = r.addr
			case "SERVER_ADMIN_LISTEN":
				value = r.admin
			}
			r.cmd.Env = append(r.cmd.Env, "CLOAKROOM_"+name+"="+value)
		}
		r.cmd.Stderr = stderr
		if err := r.cmd.Start(); err != nil {
			w.t.Fatal(err)
		}
		stderr.Close()
		go func() { // ends with the process
			r.err = r.cmd.Wait()
			close(r.ended)
		}()
		w.t.Cleanup(func() {
			w.promServer.stop()
			r.cmd.Process.Kill()
		})
		w.other, w.end = r, func() { unread.Close() }
		ready(w.t, r.admin)
		w.scrapes(append(w.replicas, r)...)
	}
	// Such a path is refused at once, and its line has more than 3 KB. The
	// buffer has 4 MiB, so two rounds fill it.
	path := "/api/" + strings.Repeat("%01", 500)
	for range 1000 {
		w.send(w.t.Context(), w.other, "", "GET", path)
	}
}

// slowStore delays the store by less than its timeout.
func (w *alertWorld) slowStore() {
	w.redis.Freeze()
	wait := w.startCalls(w.alice, 20, w.replicas[0])
	time.Sleep(500 * time.Millisecond)
	w.redis.Thaw()
	wait()
}

func (w *alertWorld) freezeStore() {
	w.redis.Freeze()
	w.call(w.replicas[0], w.alice, "GET", "/api/x")
}

func (w *alertWorld) restart() {
	r := w.replicas[1]
	r.start(w.t)
	ready(w.t, r.admin)
	w.scrapes(w.replicas...)
}
