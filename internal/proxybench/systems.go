//go:build unix

package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// system is one way to the upstream.
type system struct {
	name    string
	addr    string // host:port that it listens on
	host    string // of the Host header
	cookie  string // of a signed-in user
	streams bool   // also measure event streams
	process *exec.Cmd

	// Of Cloakroom only:
	admin    string // host:port of the admin listener
	provider *devidp.Provider
	sids     *sync.Map // :: sub of a user of the provider → sid of the session there
}

// rig is all that is measured, and what it needs.
type rig struct {
	ctx      context.Context
	dir      string
	children []*exec.Cmd
	upstream string // host:port
	goServer string // host:port of the upstream with net/http
	nginx    string // host:port of the upstream that is nginx; nothing listens there if no cell needs it
	envoy    string // its program
	oauth2   string // its program
	redis    string // host:port
	issuer   string
	provider *devidp.Provider // of issuer
	sent     string           // the Authorization header that Cloakroom sends
	systems  []*system

	redisClient *redis.Client
	reading     map[*system]map[string]float64 // :: → cost of reading the figures
	idle        map[*system]map[string]float64 // :: → figures of a second without calls
}

const (
	direct     = "upstream alone"
	bare       = "httputil.ReverseProxy"
	nginx      = "nginx"
	nginxLike  = "nginx with headers and log"
	envoy      = "Envoy"
	envoyOAuth = "Envoy with oauth2 filter"
	apache     = "mod_auth_openidc"
	oauth2     = "oauth2-proxy"
	ours       = "Cloakroom"
	older      = "Cloakroom before"
	single     = "Cloakroom with GOMAXPROCS=1"
	user       = "alice"
	clientName = "bench"
)

// newRig starts everything.
func newRig(ctx context.Context, o options) (*rig, error) {
	dir, err := os.MkdirTemp("", "proxybench")
	if err != nil {
		return &rig{}, err
	}
	r := &rig{ctx: ctx, dir: dir, envoy: o.envoy, oauth2: o.oauth2, sent: "Bearer " + strings.Repeat("x", 700)}
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	r.upstream, r.goServer, r.nginx, r.redis = freeAddr(), freeAddr(), freeAddr(), freeAddr()
	if _, err := r.start(r.goServer, self, "goupstream", r.goServer); err != nil {
		return r, err
	}
	if _, err := r.start(r.upstream, self, "upstream", r.upstream); err != nil {
		return r, err
	}
	if slices.ContainsFunc(cells(o.rows), func(c cell) bool { return strings.HasPrefix(c.path, nginxPath) }) {
		if err := r.startNginxUpstream(); err != nil {
			return r, err
		}
	}
	_, port, _ := net.SplitHostPort(r.redis)
	if _, err := r.start(r.redis, "redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "",
		"--appendonly", "no", "--dir", dir); err != nil {
		return r, err
	}
	wanted := func(name string) bool { return o.only == "" || slices.Contains(strings.Split(o.only, ","), name) }
	// In the order in which they start: the reverse proxy sends the token that
	// Cloakroom sends.
	for _, s := range []struct {
		name  string
		start func(*system) error
	}{
		{ours, r.startOurs},
		{older, func(s *system) error { return r.startBroker(s, o.before) }},
		{single, func(s *system) error {
			err := r.startBroker(s, filepath.Join(r.dir, "cloakroom"), "GOMAXPROCS=1")
			s.streams, s.provider = false, nil // what these measure is as with more
			return err
		}},
		{direct, func(s *system) error { s.addr = r.upstream; return nil }},
		{bare, func(s *system) (err error) {
			s.streams = true
			s.process, err = r.startWith([]string{authorizationEnv + "=" + r.sent}, s.addr, self, "reverseproxy",
				s.addr, r.upstream, r.goServer, r.nginx)
			return err
		}},
		{nginx, func(s *system) error { return r.startNginx(s, "nginx", "access_log off;") }},
		{nginxLike, func(s *system) error { return r.startNginx(s, "nginxlike", r.likeOurs()) }},
		{envoy, r.startEnvoy},
		{envoyOAuth, r.startEnvoyOAuth},
		{apache, r.startApache},
		{oauth2, r.startOAuth2Proxy},
	} {
		if !wanted(s.name) || s.name == older && o.before == "" {
			continue
		}
		system := &system{name: s.name, addr: freeAddr()}
		_, port, _ := net.SplitHostPort(system.addr)
		system.host = "localhost:" + port
		if err := s.start(system); err != nil {
			return r, fmt.Errorf("%s: %w", s.name, err)
		}
		r.systems = append(r.systems, system)
	}
	slices.SortStableFunc(r.systems, func(a, b *system) int { // Cloakroom is listed last
		rank := func(s *system) int { return strings.Count(s.name, ours) }
		return rank(a) - rank(b)
	})
	return r, r.compareHeaders()
}

// compareHeaders checks that the upstream gets the same header fields from
// Cloakroom as from those that are said to send the same.
func (r *rig) compareHeaders() error {
	got := make(map[string][]string)
	for _, s := range r.systems {
		if s.name != ours && s.name != bare && s.name != nginxLike {
			continue
		}
		text, err := s.headAtUpstream()
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		var names []string
		for line := range strings.Lines(text) {
			name, _, _ := strings.Cut(line, ":")
			names = append(names, http.CanonicalHeaderKey(name))
		}
		slices.Sort(names)
		got[s.name] = names
	}
	for name, names := range got {
		if got[ours] != nil && !slices.Equal(got[ours], names) {
			return fmt.Errorf("the upstream gets the header fields %q from %s and %q from %s", got[ours], ours,
				names, name)
		}
	}
	return nil
}

// headAtUpstream returns the header fields of a request as the upstream got it.
func (s *system) headAtUpstream() (string, error) {
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(s.request("GET", "/api/head", 0)); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 {
		return "", fmt.Errorf("the response is %d: %.200s", resp.StatusCode, text)
	}
	return string(text), err
}

// close ends what was started.
func (r *rig) close() {
	for _, c := range slices.Backward(r.children) {
		c.Process.Signal(syscall.SIGTERM)
		ended := make(chan struct{})
		go func() {
			c.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			c.Process.Kill()
			<-ended
		}
	}
	if r.dir != "" {
		os.RemoveAll(r.dir)
	}
}

// start starts a program, and waits until something listens at addr.
func (r *rig) start(addr, program string, args ...string) (*exec.Cmd, error) {
	return r.startWith(nil, addr, program, args...)
}

func (r *rig) startWith(env []string, addr, program string, args ...string) (*exec.Cmd, error) {
	c := exec.Command(program, args...)
	c.Env = append(os.Environ(), env...)
	out, err := os.Create(filepath.Join(r.dir, fmt.Sprintf("%s-%d.log", filepath.Base(program), len(r.children))))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	c.Stdout, c.Stderr = out, out
	if err := c.Start(); err != nil {
		return nil, err
	}
	r.children = append(r.children, c)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return c, nil
		}
		if time.Now().After(deadline) || r.ctx.Err() != nil {
			text, _ := os.ReadFile(out.Name())
			return nil, fmt.Errorf("%s does not listen:\n%s", program, text)
		}
	}
}

func freeAddr() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (r *rig) file(name, text string) (string, error) {
	path := filepath.Join(r.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// startNginx starts an nginx that hands requests on. It has some other lines in
// its block http.
func (r *rig) startNginx(s *system, name, lines string) (err error) {
	s.streams = true
	s.process, err = r.runNginx(name, s.addr, fmt.Sprintf(`
	%[7]s
	upstream api { server %[1]s; keepalive 512; keepalive_requests 100000000; }
	upstream go { server %[2]s; keepalive 512; keepalive_requests 100000000; }
	upstream nginx { server %[3]s; keepalive 512; keepalive_requests 100000000; }
	proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off;
	server {
		listen %[4]s;
		location / { proxy_pass http://api; }
		location /events { proxy_pass http://api; proxy_buffering off; }
		location %[5]s { proxy_pass http://go; }
		location %[6]s { proxy_pass http://nginx; }
	}`, r.upstream, r.goServer, r.nginx, s.addr, goPath, nginxPath, lines))
	return err
}

// likeOurs has nginx send the header fields that Cloakroom sends, and write a
// line with the same members for each request.
func (r *rig) likeOurs() string {
	return fmt.Sprintf(`
	proxy_set_header Authorization "%s"; proxy_set_header Via "1.1 nginx"; proxy_set_header X-CSRF "";
	proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $http_host;
	proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Request-Id $request_id;
	add_header Cache-Control "private, no-store";
	log_format line escape=json '{"time":"$time_iso8601","level":"INFO","msg":"request",'
		'"request":"$request_id","client":"$remote_addr","method":"$request_method","path":"$uri",'
		'"status":$status,"bytes":$body_bytes_sent,"seconds":$request_time,"route":"/api/",'
		'"session":"aaaaaaaaaaaaaaaa","user":"%s","upstream":"$upstream_addr",'
		'"upstream_seconds":$upstream_response_time}';
	access_log %s/requests.log line buffer=64k flush=1s;`, r.sent, user, r.dir)
}

// startNginxUpstream starts an nginx that responds itself, without an upstream.
func (r *rig) startNginxUpstream() error {
	_, err := r.runNginx("upstream", r.nginx, fmt.Sprintf(`
	access_log off; default_type application/json;
	server {
		listen %s;
		location = %s1024 { return 200 %s; }
	}`, r.nginx, nginxPath, strings.Repeat("x", 1024)))
	return err
}

// runNginx starts an nginx with some lines of its block http. Its files are in
// a folder of that name.
func (r *rig) runNginx(name, addr, http string) (*exec.Cmd, error) {
	dir := filepath.Join(r.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	conf, err := r.file(name+".conf", fmt.Sprintf(`
daemon off; user root; worker_processes 1; pid %[1]s/nginx.pid; error_log %[1]s/nginx.log crit;
worker_rlimit_nofile %[2]d; events { worker_connections %[2]d; }
http {
	keepalive_requests 100000000; keepalive_timeout 1h; client_max_body_size 0;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
%[3]s
}`, dir, openFiles(), http))
	if err != nil {
		return nil, err
	}
	return r.start(addr, "nginx", "-p", dir, "-c", conf, "-e", filepath.Join(dir, "nginx.log"))
}

// startApache starts an Apache with mod_auth_openidc, which keeps its sessions
// in Redis and hands the access token on.
func (r *rig) startApache(s *system) (err error) {
	redirect := "http://" + s.host + "/api/callback"
	secret, err := r.register(redirect)
	if err != nil {
		return err
	}
	var modules strings.Builder
	for _, m := range []string{"mpm_event", "authn_core", "authz_core", "authz_user", "headers", "proxy",
		"proxy_http", "auth_openidc"} {
		fmt.Fprintf(&modules, "LoadModule %s_module /usr/lib/apache2/modules/mod_%s.so\n", m, m)
	}
	conf, err := r.file("apache.conf", fmt.Sprintf(`
%[1]s
ServerName localhost
ServerRoot %[2]s
PidFile %[2]s/apache.pid
DefaultRuntimeDir %[2]s
ErrorLog %[2]s/apache.log
LogLevel error
Listen %[3]s
User www-data
Group www-data
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 60
ThreadLimit 256
ThreadsPerChild 256
ServerLimit 2
StartServers 2
MaxRequestWorkers 512
MinSpareThreads 1
MaxSpareThreads 512
OIDCProviderMetadataURL %[4]s/.well-known/openid-configuration
OIDCClientID %[5]s
OIDCClientSecret %[6]s
OIDCRedirectURI %[7]s
OIDCCryptoPassphrase a-passphrase-of-the-bench
OIDCScope "openid profile email offline_access"
OIDCPKCEMethod S256
OIDCCacheType redis
OIDCRedisCacheServer %[8]s
OIDCSessionType server-cache
<LocationMatch "^/(api|go|nginx)/">
	AuthType openid-connect
	Require valid-user
	RequestHeader set Authorization "Bearer %%{OIDC_access_token}e"
</LocationMatch>
ProxyPass /api/ http://%[9]s/api/
ProxyPass %[11]s http://%[10]s%[11]s
ProxyPass %[13]s http://%[12]s%[13]s`, modules.String(), r.dir, s.addr, r.issuer, clientName, secret, redirect, r.redis,
		r.upstream, r.goServer, goPath, r.nginx, nginxPath))
	if err != nil {
		return err
	}
	os.Chmod(r.dir, 0o755) // its workers run as another user
	if s.process, err = r.start(s.addr, "apache2", "-d", r.dir, "-f", conf, "-D", "FOREGROUND"); err != nil {
		return err
	}
	s.cookie, err = signIn("http://"+s.host+"/api/2", "mod_auth_openidc_session")
	return err
}

// startOAuth2Proxy starts an oauth2-proxy that keeps its sessions in Redis and
// passes the access token on. It writes a line in its log for each request, as
// it does by default, and allows as many idle connections as the default pool
// of net/http, which cannot be configured.
func (r *rig) startOAuth2Proxy(s *system) error {
	redirect := "http://" + s.host + "/oauth2/callback"
	secret, err := r.register(redirect)
	if err != nil {
		return err
	}
	s.process, err = r.start(s.addr, r.oauth2, "--http-address="+s.addr, "--provider=oidc",
		"--oidc-issuer-url="+r.issuer, "--client-id="+clientName, "--client-secret="+secret,
		"--redirect-url="+redirect, "--cookie-secret="+rand.Text()[:16], "--cookie-secure=false",
		"--email-domain=*", "--insecure-oidc-allow-unverified-email", "--code-challenge-method=S256",
		"--scope=openid profile email offline_access", "--skip-provider-button",
		"--session-store-type=redis", "--redis-connection-url=redis://"+r.redis,
		"--pass-access-token", "--pass-authorization-header", "--set-authorization-header=false",
		"--upstream=http://"+r.upstream+"/api/", "--upstream=http://"+r.goServer+goPath,
		"--upstream=http://"+r.nginx+nginxPath)
	if err != nil {
		return err
	}
	s.cookie, err = signIn("http://"+s.host+"/api/2", "_oauth2_proxy")
	return err
}

// startOurs builds the broker as it is shipped, and starts it.
func (r *rig) startOurs(s *system) (err error) {
	program := filepath.Join(r.dir, "cloakroom")
	build := exec.CommandContext(r.ctx, "go", "build", "-trimpath", "-o", program,
		"github.com/cloakroom-bff/cloakroom/cmd/cloakroom")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return r.startBroker(s, program)
}

// startBroker starts a broker: with sessions in Redis, the CSRF check, and a
// line in the log for each request.
func (r *rig) startBroker(s *system, program string, env ...string) error {
	app := "http://" + s.host
	secret, err := r.register(app + "/bff/callback")
	if err != nil {
		return err
	}
	files, err := r.writeApp()
	if err != nil {
		return err
	}
	key := make([]byte, 32)
	rand.Read(key)
	s.streams, s.admin, s.provider, s.sids = true, freeAddr(), r.provider, new(sync.Map)
	s.provider.SetHooks(devidp.Hooks{EditIDToken: func(_, claims map[string]any) {
		s.sids.Store(claims["sub"], claims["sid"])
	}})
	if s.process, err = r.startWith(append(env,
		"CLOAKROOM_SERVER_LISTEN="+s.addr, "CLOAKROOM_SERVER_ADMIN_LISTEN="+s.admin,
		"CLOAKROOM_SERVER_PUBLIC_URL="+app, "CLOAKROOM_FRONTEND_DIR="+files,
		"CLOAKROOM_SERVER_LIMITS_LOGINS_RATE=1000000/s", "CLOAKROOM_SERVER_LIMITS_LOGINS_BURST=1000000",
		fmt.Sprintf("CLOAKROOM_SERVER_LIMITS_CONNECTIONS=%d", openFiles()*3/4),
		"CLOAKROOM_OIDC_ISSUER="+r.issuer, "CLOAKROOM_OIDC_CLIENT_ID="+clientName,
		"CLOAKROOM_OIDC_CLIENT_SECRET="+secret,
		"CLOAKROOM_STORE_URL=redis://"+r.redis, "CLOAKROOM_SESSION_KEYS="+base64.StdEncoding.EncodeToString(key),
		fmt.Sprintf("CLOAKROOM_ROUTES=[{path: /api/, upstream: 'http://%[1]s', token: user}, "+
			"{path: %[3]s, upstream: 'http://%[2]s', token: user}, "+
			"{path: %[5]s, upstream: 'http://%[4]s', token: user}, "+
			"{path: /events, upstream: 'http://%[1]s', token: user, csrf: fetch-metadata}]",
			r.upstream, r.goServer, goPath, r.nginx, nginxPath),
	), s.addr, program, "serve"); err != nil {
		return err
	}
	if err := eventually(func() error {
		resp, err := http.Get("http://" + s.admin + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			return errors.New("not ready")
		}
		return nil
	}); err != nil {
		return err
	}
	u, err := url.Parse(app)
	if err != nil {
		return err
	}
	if s.cookie, err = signIn(app+"/bff/login", "cloakroom-"+u.Port()); err != nil {
		return err
	}
	text, err := s.headAtUpstream()
	for line := range strings.Lines(text) {
		if name, value, _ := strings.Cut(line, ":"); strings.EqualFold(name, "Authorization") {
			r.sent = strings.TrimSpace(value)
		}
	}
	return err
}

// appScript is the path of a script of the app.
const appScript = "/app.js"

// writeApp writes the files of an app, and returns their directory. The script
// has 64 KB, which compress to a third.
func (r *rig) writeApp() (string, error) {
	dir := filepath.Join(r.dir, "app")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	var script strings.Builder
	for i := 0; script.Len() < 64<<10; i++ {
		fmt.Fprintf(&script, "export function f%d(e, t) { return e.%s ?? t[%q] }\n", i, rand.Text()[:6],
			rand.Text()[:12])
	}
	if err := os.WriteFile(dir+appScript, []byte(script.String()), 0o644); err != nil {
		return "", err
	}
	page := "<!doctype html><title>App</title><script type=module src=" + appScript + "></script>"
	return dir, os.WriteFile(filepath.Join(dir, "index.html"), []byte(page), 0o644)
}

// startEnvoy starts an Envoy that only passes requests on.
func (r *rig) startEnvoy(s *system) error { return r.runEnvoy(s, "", "") }

// startEnvoyOAuth starts an Envoy whose oauth2 filter signs users in, keeps the
// tokens in cookies, encrypted, and passes the access token on.
func (r *rig) startEnvoyOAuth(s *system) error {
	redirect := "http://" + s.host + "/callback"
	secret, err := r.register(redirect)
	if err != nil {
		return err
	}
	filter := fmt.Sprintf(`
          - name: envoy.filters.http.oauth2
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.oauth2.v3.OAuth2
              config:
                token_endpoint: {cluster: provider, uri: %[1]s/token, timeout: 5s}
                authorization_endpoint: %[1]s/authorize
                redirect_uri: %[2]s
                redirect_path_matcher: {path: {exact: /callback}}
                signout_path: {path: {exact: /signout}}
                credentials: {client_id: %[3]s, token_secret: {name: token}, hmac_secret: {name: hmac}}
                forward_bearer_token: true
                use_refresh_token: true
                auth_scopes: [openid, profile, email, offline_access]`, r.issuer, redirect, clientName)
	secrets := fmt.Sprintf(`
  secrets:
  - {name: token, generic_secret: {secret: {inline_string: %s}}}
  - {name: hmac, generic_secret: {secret: {inline_string: %s}}}`, secret, rand.Text())
	if err := r.runEnvoy(s, filter, secrets); err != nil {
		return err
	}
	s.cookie, err = signIn("http://"+s.host+"/api/2", "")
	return err
}

func (r *rig) runEnvoy(s *system, filter, secrets string) (err error) {
	cluster := func(name, addr string) string {
		host, port, _ := net.SplitHostPort(addr)
		return fmt.Sprintf(`
  - name: %s
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 65536, max_pending_requests: 65536, max_requests: 65536}]}
    load_assignment: {cluster_name: %[1]s, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]}`, name, host, port)
	}
	host, port, _ := net.SplitHostPort(s.addr)
	conf, err := r.file("envoy"+port+".yaml", fmt.Sprintf(`
static_resources:%[1]s
  listeners:
  - address: {socket_address: {address: %[2]s, port_value: %[3]s}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          use_remote_address: true
          stream_idle_timeout: 0s
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {match: {prefix: %[4]s}, route: {cluster: go, timeout: 0s}}
              - {match: {prefix: %[7]s}, route: {cluster: nginx, timeout: 0s}}
              - {match: {prefix: /}, route: {cluster: api, timeout: 0s}}
          http_filters:%[5]s
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:%[6]s
`, secrets, host, port, goPath, filter, cluster("api", r.upstream)+cluster("go", r.goServer)+cluster("nginx", r.nginx)+
		cluster("provider", strings.TrimPrefix(cmp.Or(r.issuer, "http://"+r.upstream), "http://")), nginxPath))
	if err != nil {
		return err
	}
	s.streams = true
	s.process, err = r.start(s.addr, r.envoy, "-c", conf, "--disable-hot-restart", "--log-level", "warning",
		"--concurrency", strconv.Itoa(runtime.NumCPU()))
	return err
}

func eventually(f func() error) (err error) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return nil
		}
	}
	return err
}

// register starts a provider that knows a client with a redirect URI, and
// returns its secret.
func (r *rig) register(redirectURI string) (secret string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	r.issuer = "http://" + l.Addr().String()
	secret = rand.Text()
	provider, err := devidp.New(devidp.Config{
		Issuer: r.issuer, AccessTokenTTL: time.Hour, Logger: slog.New(slog.DiscardHandler),
		Clients: []devidp.Client{{ID: clientName, Secret: secret, RedirectURIs: []string{redirectURI}}},
	})
	if err != nil {
		return "", err
	}
	r.provider = provider
	go http.Serve(l, provider) // until the process ends
	return secret, nil
}

var hiddenCSRF = regexp.MustCompile(`name="csrf"[^>]*value="([^"]*)"`)

// cookies is a jar that sends Secure cookies to the loopback interface without
// TLS, as browsers do.
type cookies map[string]map[string]string // :: host → name → value

func (c cookies) SetCookies(u *url.URL, set []*http.Cookie) {
	if c[u.Host] == nil {
		c[u.Host] = make(map[string]string)
	}
	for _, cookie := range set {
		c[u.Host][cookie.Name] = cookie.Value
		if cookie.MaxAge < 0 || cookie.Value == "" || cookie.Value == "deleted" {
			delete(c[u.Host], cookie.Name)
		}
	}
}

func (c cookies) Cookies(u *url.URL) (all []*http.Cookie) {
	for name, value := range c[u.Host] {
		all = append(all, &http.Cookie{Name: name, Value: value})
	}
	return all
}

// signIn goes to an address that leads to the provider, picks the user there,
// and returns the cookie that the app has set in the end; all of them where
// that has no name.
func signIn(start, cookie string) (string, error) {
	jar := make(cookies)
	client := &http.Client{Jar: jar, Timeout: 10 * time.Second}
	get := func(method, address string, form url.Values) (*http.Response, string, error) {
		req, err := http.NewRequest(method, address, strings.NewReader(form.Encode()))
		if err != nil {
			return nil, "", err
		}
		req.Header.Set("Accept", "text/html")
		req.Header.Set("Sec-Fetch-Mode", "navigate")
		req.Header.Set("Sec-Fetch-Dest", "document")
		if method == "POST" {
			u, _ := url.Parse(address)
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("Origin", u.Scheme+"://"+u.Host)
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return resp, string(text), err
	}
	resp, text, err := get("GET", start, nil)
	if err != nil {
		return "", err
	}
	csrf := hiddenCSRF.FindStringSubmatch(text)
	if csrf == nil {
		return "", fmt.Errorf("%s leads to %s, which is not the provider's page:\n%.500s", start, resp.Request.URL,
			text)
	}
	resp, text, err = get("POST", resp.Request.URL.String(),
		url.Values{"csrf": {html.UnescapeString(csrf[1])}, "user": {user}})
	if err != nil {
		return "", err
	}
	u, _ := url.Parse(start)
	var set []string
	for _, c := range jar.Cookies(u) {
		if cookie == "" || c.Name == cookie {
			set = append(set, c.Name+"="+c.Value)
		}
	}
	if len(set) == 0 || resp.StatusCode >= 400 && cookie == "" {
		return "", fmt.Errorf("signing in ends at %s with %d and without the cookie %s:\n%.500s", resp.Request.URL,
			resp.StatusCode, cookie, text)
	}
	slices.Sort(set)
	return strings.Join(set, "; "), nil
}
