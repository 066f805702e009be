package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/check"
	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
)

// checkWorld is a configuration, by environment variables without their prefix,
// and what it depends on. Everything in it is right.
type checkWorld struct {
	app      string // its origin
	listen   string
	provider *brokertest.Provider
	redis    *redistest.Server
	echo     *brokertest.Echo
	env      map[string]string
	file     string // text of the configuration file; empty: no file
}

// newCheckWorld starts a provider, a Redis server and an upstream. edit may
// change the provider.
func newCheckWorld(t *testing.T, edit func(*devidp.Config), redisArgs ...string) *checkWorld {
	t.Helper()
	listen, app := freeOrigin(t)
	w := &checkWorld{
		app: app, listen: listen,
		provider: brokertest.StartProvider(t, app, edit),
		redis:    redistest.Start(t, append([]string{"--maxmemory", "100mb"}, redisArgs...)...),
		echo:     brokertest.NewEcho(t),
	}
	w.env = map[string]string{
		"SERVER_LISTEN": listen, "SERVER_ADMIN_LISTEN": freeAddr(t), "SERVER_PUBLIC_URL": app,
		"OIDC_ISSUER": w.provider.Issuer, "OIDC_CLIENT_ID": "spa", "OIDC_CLIENT_SECRET": w.provider.Client.Secret,
		"STORE_URL": w.redis.URL(), "SESSION_KEYS": goodKey,
		"ROUTES": "[{path: /api/, upstream: " + w.echo.URL + ", token: user}]",
	}
	return w
}

// args returns the arguments of a command that reads the configuration.
func (w *checkWorld) args(t *testing.T, command ...string) []string {
	if w.file != "" {
		command = append(command, "--config", writeFile(t, "cloakroom.yaml", w.file))
	}
	return command
}

// checkJSON runs cloakroom check --json. It returns the findings and whether
// the exit status is 1.
func (w *checkWorld) checkJSON(t *testing.T, args ...string) (findings []check.Finding, failed bool) {
	t.Helper()
	out, err := w.run(t, w.args(t, append([]string{"check", "--json"}, args...)...)...)
	if code := exitCode(err); code > 1 {
		t.Fatalf("exit status: got %d, want 0 or 1: %v", code, err)
	}
	if jsonErr := json.Unmarshal([]byte(out), &findings); jsonErr != nil {
		t.Fatalf("got %s, want a JSON array of findings", out)
	}
	w.provider.CheckLeaks(t, "the findings", out)
	if strings.Contains(out, goodKey) {
		t.Errorf("the findings contain a session key:\n%s", out)
	}
	return findings, err != nil
}

func (w *checkWorld) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, stderr lockedBuffer
	getenv := func(name string) string { return w.env[strings.TrimPrefix(name, "CLOAKROOM_")] }
	err := run(t.Context(), args, getenv, nil, &out, &stderr)
	return out.String(), err
}

// wantFinding checks that there is a finding with a key, whose problem and fix
// contain texts.
func wantFinding(t *testing.T, findings []check.Finding, key, problem, fix string, severity check.Severity) {
	t.Helper()
	for _, f := range findings {
		if f.Key == key && strings.Contains(f.Problem, problem) && strings.Contains(f.Fix, fix) {
			if f.Severity != severity {
				t.Errorf("%s: got severity %q, want %q", key, f.Severity, severity)
			}
			return
		}
	}
	t.Errorf("got %s, want a finding of %s with problem %q and fix %q", describeFindings(findings), key, problem, fix)
}

func describeFindings(findings []check.Finding) string {
	var b strings.Builder
	check.WriteTable(&b, findings)
	return "\n" + b.String()
}

func TestCheckFindsNothingIfAllIsWell(t *testing.T) {
	t.Parallel()
	w := newCheckWorld(t, nil)
	w.env["SERVER_PAGE_FILE"] = writeFile(t, "page.html", "<h1>{{.Title}}</h1>")
	chmod(t, w.env["SERVER_PAGE_FILE"]) // it is public
	for _, running := range []bool{false, true} {
		if running {
			startBroker(t, w)
		}
		before := w.redis.Do("DBSIZE")
		if findings, failed := w.checkJSON(t); len(findings) > 0 || failed {
			t.Errorf("broker running %t: got %s, want nothing", running, describeFindings(findings))
		}
		if got := w.redis.Do("DBSIZE"); got != before {
			t.Errorf("keys in the store: got %s, want %s as before:\n%s", got, before, w.redis.Do("KEYS", "*"))
		}
		out, err := w.run(t, w.args(t, "check")...)
		if err != nil {
			t.Errorf("broker running %t: got error %v, want none", running, err)
		}
		if !strings.Contains(out, "All is well") {
			t.Errorf("broker running %t: got %q, want that all is well", running, out)
		}
	}
}

// A value that no cache means says nothing about the time of a response. Of
// several values the first counts (RFC 9111, section 5.1).
func TestCheckIgnoresNonsenseInAge(t *testing.T) {
	t.Parallel()
	w := newCheckWorld(t, nil)
	for _, test := range []struct {
		cached time.Duration // how old the response is
		age    []string
	}{
		{0, []string{"-600"}}, {0, []string{"+600"}}, {0, []string{"600.5"}}, {0, []string{"ten"}}, {0, []string{""}},
		{0, []string{"1000000000"}}, {0, []string{"99999999999999999999"}},
		{10 * time.Minute, []string{"600"}}, {10 * time.Minute, []string{"600, 7"}},
		{10 * time.Minute, []string{"600", "7"}},
	} {
		w.provider.SetHooks(devidp.Hooks{Intercept: func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
			rw.Header().Set("Date", time.Now().Add(-test.cached).UTC().Format(http.TimeFormat))
			rw.Header()["Age"] = test.age
			next.ServeHTTP(rw, r)
		}})
		if findings, _ := w.checkJSON(t); len(findings) > 0 {
			t.Errorf("Age %q: got %s, want nothing", test.age, describeFindings(findings))
		}
	}
}

// operatorMistake is something that an operator gets wrong.
type operatorMistake struct {
	name     string
	provider func(*devidp.Config)
	redis    []string // arguments of redis-server
	make     func(t *testing.T, w *checkWorld)

	key, problem, fix string
	severity          check.Severity // empty: error
}

func set(name, value string) func(*testing.T, *checkWorld) {
	return func(_ *testing.T, w *checkWorld) { w.env[name] = value }
}

// route returns a configuration of one route to an upstream.
func route(upstream, more string) string {
	return fmt.Sprintf("[{path: /api/, upstream: %q, token: user%s}]", upstream, more)
}

// startTLSUpstream starts an upstream with a certificate. It returns its URL.
func startTLSUpstream(
	t *testing.T, name string, notAfter time.Time, edit ...func(*tls.Config),
) (upstream, caFile string) {
	t.Helper()
	cert, key := newPairFor(t, name, 1, notAfter)
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	for _, edit := range edit {
		edit(server.TLS)
	}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL, writeFile(t, "ca.pem", cert)
}

func oldTLS(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }

// shiftDate changes the Date of every response of the provider.
func shiftDate(w *checkWorld, by time.Duration) {
	w.provider.SetHooks(devidp.Hooks{Intercept: func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
		rw.Header().Set("Date", time.Now().Add(by).UTC().Format(http.TimeFormat))
		next.ServeHTTP(rw, r)
	}})
}

// startProxy starts a reverse proxy in front of the broker and makes it the
// public URL.
func startProxy(t *testing.T, w *checkWorld, rewrite func(*httputil.ProxyRequest)) *httptest.Server {
	t.Helper()
	target := &url.URL{Scheme: "http", Host: w.listen}
	front := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		if rewrite != nil {
			rewrite(r)
		}
	}})
	t.Cleanup(front.Close)
	w.env["SERVER_PUBLIC_URL"] = front.URL
	return front
}

var operatorMistakes = []operatorMistake{
	{name: "typo in the file", make: func(_ *testing.T, w *checkWorld) { w.file = "oidc: {isuer: x}\n" },
		key: "oidc.isuer", problem: "unknown key", fix: "Rename oidc.isuer to oidc.issuer"},
	{name: "wrong unit", make: set("SESSION_IDLE_TIMEOUT", "30 minutes"),
		key: "session.idle_timeout", problem: "not a duration", fix: "session.idle_timeout"},
	{name: "path of the issuer", make: func(_ *testing.T, w *checkWorld) { w.env["OIDC_ISSUER"] += "/realms/main" },
		key: "oidc.issuer", problem: "/op/realms/main/.well-known/openid-configuration: 404",
		fix: "/op, to the letter"},
	{name: "slash after the issuer", make: func(_ *testing.T, w *checkWorld) { w.env["OIDC_ISSUER"] += "/" },
		key: "oidc.issuer", problem: "issuer is", fix: "/op, to the letter"},
	{name: "URL of the provider behind a proxy", make: func(_ *testing.T, w *checkWorld) {
		w.provider.SetHooks(devidp.Hooks{EditDiscovery: func(m map[string]any) {
			m["token_endpoint"] = "http://id.internal:8080/token"
		}})
	}, key: "oidc.issuer", problem: `"http://id.internal:8080/token": plain http`, fix: "its public URL"},
	{name: "unreachable provider", make: func(t *testing.T, w *checkWorld) {
		w.env["OIDC_ISSUER"] = "https://" + freeAddr(t) + "/op"
	}, key: "oidc.issuer", problem: "connection refused", fix: "host and port of oidc.issuer"},
	{name: "unknown host of the provider", make: set("OIDC_ISSUER", "https://id.invalid/op"),
		key: "oidc.issuer", problem: "id.invalid", fix: "DNS"},
	{name: "provider over http", make: set("OIDC_ISSUER", "http://id.example.com/op"),
		key: "oidc.issuer", problem: "plain http", fix: "oidc.issuer"},
	{name: "https for a provider over http", make: func(_ *testing.T, w *checkWorld) {
		w.env["OIDC_ISSUER"] = strings.Replace(w.env["OIDC_ISSUER"], "http:", "https:", 1)
	}, key: "oidc.issuer", problem: "HTTP response to HTTPS client", fix: "port of oidc.issuer"},
	{name: "unknown CA of the provider", make: func(t *testing.T, w *checkWorld) {
		w.env["OIDC_ISSUER"], _ = startTLSUpstream(t, "127.0.0.1", time.Now().AddDate(1, 0, 0))
	}, key: "oidc.ca_file", problem: "signed by unknown authority", fix: "Set oidc.ca_file"},
	{name: "old TLS of the provider", make: func(t *testing.T, w *checkWorld) {
		w.env["OIDC_ISSUER"], _ = startTLSUpstream(t, "127.0.0.1", time.Now().AddDate(1, 0, 0), oldTLS)
	}, key: "oidc.issuer", problem: "protocol version", fix: "Enable TLS 1.2"},
	{name: "client secret", make: set("OIDC_CLIENT_SECRET", "wrong"),
		key: "oidc.client_secret", problem: "invalid_client", fix: `the client "spa"`},
	{name: "client secret without PAR", provider: nil, make: func(_ *testing.T, w *checkWorld) {
		withoutPAR(w)
		w.env["OIDC_CLIENT_SECRET"] = "wrong"
	}, key: "oidc.client_secret", problem: "invalid_client", fix: `the client "spa"`},
	{name: "client authentication", make: func(_ *testing.T, w *checkWorld) {
		w.env["OIDC_CLIENT_SECRET"] = "wrong"
		w.provider.SetHooks(devidp.Hooks{EditDiscovery: func(m map[string]any) {
			m["token_endpoint_auth_methods_supported"] = []string{"private_key_jwt"}
		}})
	}, key: "oidc.client_auth", problem: "does not list client_secret_basic", fix: "private_key_jwt"},
	{name: "client assertion", make: func(t *testing.T, w *checkWorld) {
		delete(w.env, "OIDC_CLIENT_SECRET")
		w.env["OIDC_CLIENT_AUTH"] = "jwt_file"
		w.env["OIDC_CLIENT_ASSERTION_FILE"] = filepath.Join(t.TempDir(), "token")
		token := []byte("eyJhbGciOiJFUzI1NiJ9.e30.AAAA") // of an unknown issuer
		if err := os.WriteFile(w.env["OIDC_CLIENT_ASSERTION_FILE"], token, 0o600); err != nil {
			t.Fatal(err)
		}
	}, key: "oidc.client_assertion_file", problem: "invalid_client", fix: "trust the issuer"},
	{name: "no refresh token", make: func(_ *testing.T, w *checkWorld) {
		w.provider.SetHooks(devidp.Hooks{EditDiscovery: func(m map[string]any) {
			m["grant_types_supported"] = []string{"authorization_code"}
		}})
	}, key: "oidc.scopes", problem: "no refresh token", fix: "refresh tokens", severity: check.SeverityWarning},
	{name: "no offline_access", make: set("OIDC_SCOPES", "openid"),
		key: "oidc.scopes", problem: "no refresh token", fix: "offline_access", severity: check.SeverityWarning},
	{name: "redirect URI", provider: func(c *devidp.Config) {
		c.Clients[0].RedirectURIs = []string{"https://app.example.com/bff/callback"}
	}, key: "server.public_url", problem: "redirect_uri", fix: "/bff/callback"},
	{name: "redirect URI without PAR", provider: func(c *devidp.Config) {
		c.Clients[0].RedirectURIs = []string{"https://app.example.com/bff/callback"}
	}, make: func(_ *testing.T, w *checkWorld) { withoutPAR(w) },
		key: "server.public_url", problem: "redirect_uri", fix: "/bff/callback"},
	{name: "scope", provider: nil, make: func(_ *testing.T, w *checkWorld) {
		w.provider.SetHooks(devidp.Hooks{Intercept: func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.HasSuffix(r.URL.Path, "/par") {
				next.ServeHTTP(rw, r)
				return
			}
			rw.WriteHeader(400)
			io.WriteString(rw, `{"error": "invalid_scope"}`)
		}})
	}, key: "oidc.scopes", problem: "invalid_scope", fix: "oidc.scopes"},
	{name: "clock behind", make: func(_ *testing.T, w *checkWorld) { shiftDate(w, 5*time.Minute) },
		key: "oidc.issuer", problem: "behind the provider's", fix: "NTP"},
	{name: "clock ahead", make: func(_ *testing.T, w *checkWorld) { shiftDate(w, -5*time.Minute) },
		key: "oidc.issuer", problem: "ahead of the provider's", fix: "NTP"},

	{name: "password of Redis", redis: []string{"--requirepass", "right"}, make: func(_ *testing.T, w *checkWorld) {
		w.env["STORE_URL"] = w.redis.URLAs("default", "wrong")
	}, key: "store.url", problem: "WRONGPASS", fix: "password in store.url"},
	{name: "password file of Redis", redis: []string{"--requirepass", "right"},
		make: func(t *testing.T, w *checkWorld) {
			w.env["STORE_PASSWORD_FILE"] = writeFile(t, "password", "wrong")
		}, key: "store.password_file", problem: "WRONGPASS", fix: "into the file"},
	{name: "Redis down", make: func(_ *testing.T, w *checkWorld) { w.redis.Kill() },
		key: "store.url", problem: "connection refused", fix: "start Redis, or correct store.url"},
	{name: "Redis expects TLS", make: func(t *testing.T, w *checkWorld) {
		server, _ := redistest.StartTLS(t)
		w.env["STORE_URL"] = strings.Replace(server.URL(), "rediss:", "redis:", 1)
	}, key: "store.url", problem: "expects TLS", fix: "Write rediss: instead of redis:"},
	{name: "Redis without TLS", make: func(_ *testing.T, w *checkWorld) {
		w.env["STORE_URL"] = strings.Replace(w.redis.URL(), "redis:", "rediss:", 1)
	}, key: "store.url", problem: "does not speak TLS", fix: "Write redis: instead of rediss:"},
	{name: "unknown CA of Redis", make: func(t *testing.T, w *checkWorld) {
		server, _ := redistest.StartTLS(t)
		w.env["STORE_URL"] = server.URL()
	}, key: "store.ca_file", problem: "unknown authority", fix: "Set store.ca_file"},
	{name: "no client certificate for Redis", make: func(t *testing.T, w *checkWorld) {
		server, caFile, _, _ := redistest.StartMutualTLS(t)
		w.env["STORE_URL"], w.env["STORE_CA_FILE"] = server.URL(), caFile
	}, key: "store.cert_file", problem: "Redis cannot be used", fix: "store.cert_file"},
	{name: "no maxmemory", redis: []string{"--maxmemory", "0"},
		key: "store.url", problem: "no memory limit", fix: "maxmemory", severity: check.SeverityWarning},
	{name: "evicting policy", redis: []string{"--maxmemory-policy", "allkeys-lru"},
		key: "store.url", problem: "allkeys-lru", fix: "noeviction", severity: check.SeverityWarning},
	{name: "no persistence", redis: []string{"--appendonly", "no"},
		key: "store.url", problem: "does not save sessions", fix: "appendonly", severity: check.SeverityWarning},
	{name: "ACL without scripts", make: func(_ *testing.T, w *checkWorld) {
		w.redis.Do("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-@scripting")
		w.env["STORE_URL"] = w.redis.URLAs("app", "pw")
	}, key: "store.url", problem: "no permissions to run the 'eval", fix: "Grant the Redis user"},
	{name: "ACL with another prefix", make: func(_ *testing.T, w *checkWorld) {
		w.redis.Do("ACL", "SETUSER", "app", "on", ">pw", "~other:*", "&*", "+@all")
		w.env["STORE_URL"] = w.redis.URLAs("app", "pw")
	}, key: "store.url", problem: "NOPERM", fix: "Grant the Redis user"},
	{name: "ACL without invalidation", make: func(_ *testing.T, w *checkWorld) {
		w.redis.Do("ACL", "SETUSER", "app", "on", ">pw", "~*", "resetchannels", "+@all", "-client|tracking")
		w.env["STORE_URL"] = w.redis.URLAs("app", "pw")
	}, key: "store.url", problem: "every request reads the store", fix: "client|tracking",
		severity: check.SeverityWarning},

	{name: "session key", make: set("SESSION_KEYS", "c2hvcnQ="),
		key: "session.keys[0]", problem: "not the base64 of 32 bytes", fix: "session.keys"},
	{name: "differing session keys", make: func(t *testing.T, w *checkWorld) {
		startBroker(t, w)
		w.env["SESSION_KEYS"] = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXowMTIzNDU="
	}, key: "session.keys", problem: "other session keys", fix: "same session.keys"},
	{name: "differing configuration", make: func(t *testing.T, w *checkWorld) {
		startBroker(t, w)
		w.env["SESSION_IDLE_TIMEOUT"] = "17m"
	}, key: "session.idle_timeout", problem: "another value of session.idle_timeout", fix: "same configuration",
		severity: check.SeverityWarning},
	{name: "shared prefix", make: func(t *testing.T, w *checkWorld) {
		startBroker(t, w)
		w.env["SERVER_PUBLIC_URL"], w.env["OIDC_CLIENT_ID"] = "http://localhost:1", "other"
	}, key: "store.prefix", problem: "Another app shares this Redis", fix: "store.prefix of its own",
		severity: check.SeverityWarning},

	{name: "Host not passed", make: func(t *testing.T, w *checkWorld) {
		startProxy(t, w, nil)
		startBroker(t, w)
	}, key: "server.public_url", problem: "421", fix: "pass the Host"},
	{name: "another public URL", make: func(t *testing.T, w *checkWorld) {
		front := startProxy(t, w, func(r *httputil.ProxyRequest) { r.Out.Host = r.In.Host })
		startBroker(t, w)
		w.env["SERVER_PUBLIC_URL"] = strings.Replace(front.URL, "127.0.0.1", "localhost", 1)
	}, key: "server.public_url", problem: "421", fix: "correct server.public_url"},
	{name: "public URL of another server", make: func(_ *testing.T, w *checkWorld) {
		w.env["SERVER_PUBLIC_URL"] = w.echo.URL
	}, key: "server.public_url", problem: "does not reach a Cloakroom", fix: "server.listen"},
	{name: "redirecting proxy", make: func(t *testing.T, w *checkWorld) {
		front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, "https://www.example.com"+r.URL.Path, http.StatusMovedPermanently)
		}))
		t.Cleanup(front.Close)
		w.env["SERVER_PUBLIC_URL"] = front.URL
	}, key: "server.public_url", problem: "redirects to", fix: "set server.public_url to https://www.example.com"},
	{name: "X-CSRF not passed", make: func(t *testing.T, w *checkWorld) {
		startProxy(t, w, func(r *httputil.ProxyRequest) {
			r.Out.Host = r.In.Host
			r.Out.Header.Del("X-CSRF")
		})
		startBroker(t, w)
	}, key: "server.public_url", problem: "403 csrf", fix: "X-CSRF"},
	{name: "expired certificate of the proxy", make: func(t *testing.T, w *checkWorld) {
		w.env["SERVER_PUBLIC_URL"], _ = startTLSUpstream(t, "127.0.0.1", time.Now().Add(-time.Minute))
	}, key: "server.public_url", problem: "expired", fix: "Renew the certificate"},
	{name: "name in the certificate of the proxy", make: func(t *testing.T, w *checkWorld) {
		w.env["SERVER_PUBLIC_URL"], _ = startTLSUpstream(t, "www.example.com", time.Now().AddDate(1, 0, 0))
	}, key: "server.public_url", problem: "127.0.0.1", fix: "www.example.com"},
	{name: "private CA of the proxy", make: func(t *testing.T, w *checkWorld) {
		w.env["SERVER_PUBLIC_URL"], _ = startTLSUpstream(t, "127.0.0.1", time.Now().AddDate(1, 0, 0))
	}, key: "server.public_url", problem: "unknown authority", fix: "browsers trust", severity: check.SeverityWarning},
	{name: "another server behind a private CA", make: func(t *testing.T, w *checkWorld) {
		w.env["SERVER_PUBLIC_URL"], _ = startTLSUpstream(t, "127.0.0.1", time.Now().AddDate(1, 0, 0))
	}, key: "server.public_url", problem: "does not reach a Cloakroom: 404", fix: "server.listen"},
	{name: "public_url over http", make: set("SERVER_PUBLIC_URL", "http://app.example.com"),
		key: "server.public_url", problem: "http", fix: "server.public_url"},

	{name: "upstream down", make: func(t *testing.T,
		w *checkWorld) {
		w.env["ROUTES"] = route("http://"+freeAddr(t), "")
	},
		key: "routes[0].upstream", problem: "connection refused", fix: "Start the upstream"},
	{name: "development server down", make: func(t *testing.T, w *checkWorld) {
		w.env["FRONTEND_URL"] = "http://" + freeAddr(t)
	}, key: "frontend.url", problem: "connection refused", fix: "Start the upstream"},
	{name: "upstream with TLS", make: func(t *testing.T, w *checkWorld) {
		upstream, _ := startTLSUpstream(t, "127.0.0.1", time.Now().AddDate(1, 0, 0))
		w.env["ROUTES"] = route(strings.Replace(upstream, "https:", "http:", 1), "")
	}, key: "routes[0].upstream", problem: "speaks TLS", fix: "Write https://"},
	{name: "upstream without TLS", make: func(_ *testing.T, w *checkWorld) {
		w.env["ROUTES"] = route(strings.Replace(w.echo.URL, "http:", "https:", 1), "")
	}, key: "routes[0].upstream", problem: "TLS handshake", fix: "write http://"},
	{name: "upstream without a scheme", make: func(_ *testing.T, w *checkWorld) {
		w.env["ROUTES"] = route("localhost:8080", "")
	}, key: "routes[0].upstream", problem: "localhost:8080", fix: "routes[0].upstream"},
	{name: "unknown CA of the upstream", make: func(t *testing.T, w *checkWorld) {
		upstream, _ := startTLSUpstream(t, "127.0.0.1", time.Now().AddDate(1, 0, 0))
		w.env["ROUTES"] = route(upstream, "")
	}, key: "routes[0].upstream_tls.ca_file", problem: "unknown authority", fix: "Set routes[0].upstream_tls.ca_file"},
	{name: "client certificate for the upstream", make: func(t *testing.T, w *checkWorld) {
		upstream, caFile := startTLSUpstream(t, "127.0.0.1", time.Now().AddDate(1, 0, 0),
			func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert })
		w.env["ROUTES"] = route(upstream, fmt.Sprintf(", upstream_tls: {ca_file: %q}", caFile))
	}, key: "routes[0].upstream_tls.cert_file", problem: "certificate required", fix: "upstream_tls.cert_file"},
	{name: "old TLS of the upstream", make: func(t *testing.T, w *checkWorld) {
		upstream, _ := startTLSUpstream(t, "127.0.0.1", time.Now().AddDate(1, 0, 0), oldTLS)
		w.env["ROUTES"] = route(upstream, "")
	}, key: "routes[0].upstream", problem: "protocol version", fix: "Enable TLS 1.2"},
	{name: "expired certificate of the upstream", make: func(t *testing.T, w *checkWorld) {
		upstream, caFile := startTLSUpstream(t, "127.0.0.1", time.Now().Add(-time.Minute))
		w.env["ROUTES"] = route(upstream, fmt.Sprintf(", upstream_tls: {ca_file: %q}", caFile))
	}, key: "routes[0].upstream", problem: "expired", fix: "Renew the certificate"},
	{name: "name in the certificate of the upstream", make: func(t *testing.T, w *checkWorld) {
		upstream, caFile := startTLSUpstream(t, "orders.internal", time.Now().AddDate(1, 0, 0))
		w.env["ROUTES"] = route(upstream, fmt.Sprintf(", upstream_tls: {ca_file: %q}", caFile))
	}, key: "routes[0].upstream", problem: "127.0.0.1", fix: "orders.internal"},

	{name: "expired certificate", make: func(t *testing.T, w *checkWorld) { certify(t, w, "localhost", -time.Minute) },
		key: "server.tls.cert_file", problem: "expired at", fix: "Renew"},
	{name: "certificate that expires soon", make: func(t *testing.T, w *checkWorld) {
		certify(t, w, "localhost", 48*time.Hour)
	}, key: "server.tls.cert_file", problem: "expires at", fix: "Renew", severity: check.SeverityWarning},
	{name: "name in the certificate", make: func(t *testing.T, w *checkWorld) {
		certify(t, w, "www.example.com", 365*24*time.Hour)
	}, key: "server.tls.cert_file", problem: "is not for localhost", fix: "certificate for this host",
		severity: check.SeverityWarning},
	{name: "key of another certificate", make: func(t *testing.T, w *checkWorld) {
		certify(t, w, "localhost", 365*24*time.Hour)
		_, other := newPair(t, 2, time.Now().Add(time.Hour))
		w.env["SERVER_TLS_KEY_FILE"] = writeFile(t, "other.key", other)
	}, key: "server.tls", problem: "not a certificate and its key", fix: "server.tls.key_file"},
	{name: "key file that all users of the machine can read", make: func(t *testing.T, w *checkWorld) {
		certify(t, w, "localhost", 365*24*time.Hour)
		chmod(t, w.env["SERVER_TLS_KEY_FILE"])
	}, key: "server.tls.key_file", problem: "every user of this machine can read it", fix: "chmod 600",
		severity: check.SeverityWarning},
	{name: "secret file that all users of the machine can read", make: func(t *testing.T, w *checkWorld) {
		delete(w.env, "SESSION_KEYS")
		w.env["SESSION_KEYS_FILE"] = writeFile(t, "keys", goodKey)
		chmod(t, w.env["SESSION_KEYS_FILE"])
	}, key: "session.keys_file", problem: "every user of this machine can read it", fix: "chmod 600",
		severity: check.SeverityWarning},
	{name: "inline handler", make: func(t *testing.T, w *checkWorld) {
		w.env["FRONTEND_DIR"] = t.TempDir()
		overwrite(t, filepath.Join(w.env["FRONTEND_DIR"], "index.html"),
			`<!doctype html><button onclick="go()">Go</button>`)
	}, key: "frontend.dir", problem: "onclick", fix: "addEventListener", severity: check.SeverityWarning},
}

func TestCheckFindsMistakes(t *testing.T) {
	t.Parallel()
	for _, m := range operatorMistakes {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			w := newCheckWorld(t, m.provider, m.redis...)
			if m.make != nil {
				m.make(t, w)
			}
			findings, failed := w.checkJSON(t)
			severity := m.severity
			if severity == "" {
				severity = check.SeverityError
			}
			wantFinding(t, findings, m.key, m.problem, m.fix, severity)
			if want := slices.ContainsFunc(findings, func(f check.Finding) bool {
				return f.Severity == check.SeverityError
			}); failed != want {
				t.Errorf("exit status 1: got %t, want %t for %s", failed, want, describeFindings(findings))
			}
			if len(findings) > 3 {
				t.Errorf("got %d findings, want the mistake and at most two consequences:%s", len(findings),
					describeFindings(findings))
			}
		})
	}
}

// withoutPAR makes the provider one without pushed authorization requests.
func withoutPAR(w *checkWorld) {
	w.provider.SetHooks(devidp.Hooks{EditDiscovery: func(m map[string]any) {
		delete(m, "pushed_authorization_request_endpoint")
	}})
}

// startBroker starts a broker, and waits until other replicas can find it.
func startBroker(t *testing.T, w *checkWorld) {
	t.Helper()
	start(t, maps.Clone(w.env), "serve")
	ready(t, w.env["SERVER_ADMIN_LISTEN"])
	eventually(t, 10*time.Second, "the broker has a record", func() bool {
		return w.redis.Do("ZCARD", "cloakroom:replicas") != ":0"
	})
}

// certify gives the listener a certificate.
func certify(t *testing.T, w *checkWorld, name string, life time.Duration) {
	t.Helper()
	cert, key := newPairFor(t, name, 1, time.Now().Add(life))
	w.env["SERVER_TLS_CERT_FILE"] = writeFile(t, "tls.crt", cert)
	w.env["SERVER_TLS_KEY_FILE"] = writeFile(t, "tls.key", key)
	w.env["SERVER_PUBLIC_URL"] = strings.Replace(w.app, "http:", "https:", 1)
}

func chmod(t *testing.T, file string) {
	t.Helper()
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Each service of configs/providers: a right configuration is all well, and a
// wrong secret and a redirect URI that is not registered are found.
func TestCheckUnderstandsProviderProfiles(t *testing.T) {
	t.Parallel()
	settings := map[string]map[string]string{
		"okta":   {"OIDC_SENDER_CONSTRAINT": "dpop"},
		"google": {"OIDC_SCOPES": "openid", "OIDC_AUTHORIZATION_PARAMETERS": "{access_type: offline, prompt: consent}"},
		"entra": {
			"OIDC_SCOPES": "openid offline_access api://orders/read",
			"ROUTES":      "[{path: /a/, upstream: 'http://localhost:1', token: user, scopes: [api://billing/read]}]",
		},
		"cognito": {"OIDC_SCOPES": "openid profile email"},
	}
	for _, profile := range devidp.Profiles {
		t.Run(profile.Name, func(t *testing.T) {
			t.Parallel()
			w := newCheckWorld(t, profile.Config)
			w.provider.SetHooks(profile.Hooks(w.provider.Provider))
			maps.Copy(w.env, settings[profile.Name])
			w.env["ROUTES"] = strings.Replace(w.env["ROUTES"], "http://localhost:1", w.echo.URL, 1)
			if findings, failed := w.checkJSON(t); failed {
				t.Errorf("got %s, want no errors", describeFindings(findings))
			}
			right := w.env["OIDC_CLIENT_SECRET"]
			w.env["OIDC_CLIENT_SECRET"] = "wrong"
			findings, _ := w.checkJSON(t)
			wantFinding(t, findings, "oidc.client_secret", "refused", "the client", check.SeverityError)
			w.env["OIDC_CLIENT_SECRET"], w.env["SERVER_PUBLIC_URL"] = right, "http://localhost:1"
			findings, _ = w.checkJSON(t)
			wantFinding(t, findings, "server.public_url", "redirect_uri", "http://localhost:1/bff/callback",
				check.SeverityError)
		})
	}
}

// checkProcess runs cloakroom check as a process with further environment
// variables.
func (w *checkWorld) checkProcess(t *testing.T, env ...string) []check.Finding {
	t.Helper()
	cmd := brokerCommand(t, "check", "--json")
	for name, value := range w.env {
		cmd.Env = append(cmd.Env, "CLOAKROOM_"+name+"="+value)
	}
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var findings []check.Finding
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatalf("got %s, want a JSON array of findings", out)
	}
	return findings
}

func TestCheckFindsMistypedVariables(t *testing.T) {
	t.Parallel()
	w := newCheckWorld(t, nil)
	findings := w.checkProcess(t, "CLOAKROOM_SESSION_IDLE_TIMOUT=1h")
	wantFinding(t, findings, "session.idle_timeout", "CLOAKROOM_SESSION_IDLE_TIMOUT has no effect",
		"CLOAKROOM_SESSION_IDLE_TIMEOUT", check.SeverityWarning)
	if len(findings) != 1 {
		t.Errorf("got %s, want one finding", describeFindings(findings))
	}
}

func TestCheckFindsFewDescriptors(t *testing.T) {
	t.Parallel()
	w := newCheckWorld(t, nil)
	findings := w.checkProcess(t, "CLOAKROOM_TEST_DESCRIPTORS=256")
	wantFinding(t, findings, "server.limits.connections", "96 connections of clients", "ulimit -n",
		check.SeverityWarning)
	w.env["SERVER_LIMITS_CONNECTIONS"] = "5000"
	findings = w.checkProcess(t, "CLOAKROOM_TEST_DESCRIPTORS=256")
	wantFinding(t, findings, "server.limits.connections", "5000 connections are more", "ulimit -n",
		check.SeverityWarning)
}

// freeze returns the address of a listener that accepts connections and sends
// nothing.
func freeze(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String() // the kernel accepts
}

func TestCheckOfADeadEnvironmentEndsSoon(t *testing.T) {
	t.Parallel()
	w := newCheckWorld(t, nil)
	for name, url := range map[string]string{
		"OIDC_ISSUER": "https://", "STORE_URL": "redis://", "SERVER_PUBLIC_URL": "https://",
	} {
		w.env[name] = url + freeze(t)
	}
	w.env["SERVER_ADMIN_LISTEN"] = freeze(t)
	var routes []string
	for i := range 20 {
		routes = append(routes, fmt.Sprintf("{path: /a%d/, upstream: 'https://%s', token: user, accept_bearer: "+
			"{issuer: 'https://%s', audience: a}}", i, freeze(t), freeze(t)))
	}
	w.env["ROUTES"] = "[" + strings.Join(routes, ", ") + "]"
	began := time.Now()
	findings, failed := w.checkJSON(t)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("got findings after %v, want at most 15 s", took)
	}
	if !failed {
		t.Error("exit status: got 0, want 1")
	}
	for _, key := range []string{"oidc.issuer", "store.url", "routes[0].upstream", "routes[19].accept_bearer.issuer"} {
		wantFinding(t, findings, key, "", "", check.SeverityError)
	}
	wantFinding(t, findings, "server.public_url", "No response", "", check.SeverityWarning)
}

// Mistakes in the file are reported all at once, together with what else is
// wrong.
func TestCheckReportsAllMistakesOfTheFile(t *testing.T) {
	t.Parallel()
	w := newCheckWorld(t, nil)
	w.file = "session: {idle_timeout: 5 minutes, max_per_user: -1}\nrouts: []\nserver: {prefix: bff}\n"
	w.env["ROUTES"] = route("http://"+freeAddr(t), ", retry: sometimes")
	w.env["OIDC_CLIENT_SECRET"] = ""
	w.redis.Kill()
	findings, failed := w.checkJSON(t)
	if !failed {
		t.Error("exit status: got 0, want 1")
	}
	for key, problem := range map[string]string{
		"session.idle_timeout": "5 minutes", "session.max_per_user": "-1", "routs": "unknown key",
		"server.prefix": "bff", "routes[0].retry": "sometimes", "oidc.client_secret": "missing",
		"routes[0].upstream": "unreachable", "store.url": "refused",
	} {
		wantFinding(t, findings, key, problem, "", check.SeverityError)
	}
	offline, failed := w.checkJSON(t, "--offline")
	if !failed {
		t.Error("exit status offline: got 0, want 1")
	}
	if got, want := len(offline), len(findings)-2; got != want {
		t.Errorf("offline: got %d findings, want %d:%s", got, want, describeFindings(offline))
	}
}

func TestCheckOfAMissingFile(t *testing.T) {
	t.Parallel()
	w := newCheckWorld(t, nil)
	for name, file := range map[string]string{
		"missing": filepath.Join(t.TempDir(), "none.yaml"), "not YAML": writeFile(t, "a.yaml", "server: [\n"),
	} {
		findings, failed := w.checkJSON(t, "--config", file)
		if !failed || len(findings) != 1 {
			t.Errorf("%s: got failed %t and %s, want one error", name, failed, describeFindings(findings))
			continue
		}
		if got := findings[0]; got.Key != "" || got.Fix == "" {
			t.Errorf("%s: got %+v, want a fix and no key", name, got)
		}
	}
}

func TestCheckAndSchemaRefuseArguments(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"check", "x"}, {"schema", "x"}, {"check", "--nonsense"}} {
		err := run(t.Context(), args, func(string) string { return "" }, nil, io.Discard, io.Discard)
		if got := exitCode(err); got != 2 {
			t.Errorf("%q: exit status: got %d, want 2", args, got)
		}
	}
}

func TestSchemaPrintsTheCommittedFile(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	err := run(t.Context(), []string{"schema"}, func(string) string { return "" }, nil, &out, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../../configs/cloakroom.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Error("got another schema than configs/cloakroom.schema.json")
	}
}

// The check of a configuration leaves nothing at the provider that lives: no
// session and no token.
func TestCheckIssuesNoTokens(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*checkWorld){"with PAR": func(*checkWorld) {}, "without PAR": withoutPAR} {
		w := newCheckWorld(t, nil)
		edit(w)
		w.checkJSON(t)
		if got := w.provider.LiveRefreshTokens(); got != 0 {
			t.Errorf("%s: refresh tokens: got %d, want 0", name, got)
		}
		if got := w.provider.TokenRequests(); got > 1 {
			t.Errorf("%s: token requests: got %d, want at most 1", name, got)
		}
	}
}

// An upstream with the right scheme sees one harmless request.
func TestCheckSendsUpstreamsAHarmlessRequest(t *testing.T) {
	t.Parallel()
	w := newCheckWorld(t, nil)
	var mu sync.Mutex // guards seen
	var seen []string
	w.echo.Handler = func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Method+" "+r.RequestURI)
	}
	if findings, failed := w.checkJSON(t); failed {
		t.Errorf("got %s, want no errors", describeFindings(findings))
	}
	mu.Lock()
	defer mu.Unlock()
	// Go's server itself responds to OPTIONS *, so that the handler sees
	// nothing.
	if len(seen) > 0 {
		t.Errorf("got requests %q, want none that an app handles", seen)
	}
}

// A store in a file is open in the broker, and check neither needs nor creates
// it.
func TestCheckLeavesAFileStoreAlone(t *testing.T) {
	t.Parallel()
	w := newCheckWorld(t, nil)
	dir := filepath.Join(t.TempDir(), "sessions")
	w.env["STORE_URL"] = "file:" + dir
	if findings, failed := w.checkJSON(t); failed {
		t.Errorf("without a directory: got %s, want no errors", describeFindings(findings))
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("directory after the check: got error %v, want that it does not exist", err)
	}
	start(t, maps.Clone(w.env), "serve")
	ready(t, w.env["SERVER_ADMIN_LISTEN"])
	if findings, failed := w.checkJSON(t); failed {
		t.Errorf("while a broker runs: got %s, want no errors", describeFindings(findings))
	}
	w.env["STORE_URL"] = "file:sessions"
	findings, _ := w.checkJSON(t)
	wantFinding(t, findings, "store.url", "absolute path", "store.url", check.SeverityError)
}
