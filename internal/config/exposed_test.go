package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// exposure is a folder with an app, in app, and a configuration.
type exposure struct {
	t   *testing.T
	dir string
}

func newExposure(t *testing.T) *exposure {
	t.Helper()
	e := &exposure{t, t.TempDir()}
	e.write("index.html", "<!doctype html>")
	e.write("app/index.html", "<!doctype html>")
	e.write("private/secret", "a secret of the client")
	return e
}

func (e *exposure) write(name, text string) {
	e.t.Helper()
	name = filepath.Join(e.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		e.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		e.t.Fatal(err)
	}
}

func (e *exposure) link(target, name string) {
	e.t.Helper()
	if err := os.Symlink(filepath.Join(e.dir, target), filepath.Join(e.dir, name)); err != nil {
		e.t.Fatal(err)
	}
}

// mistakes returns the mistakes of frontend.dir in the configuration at a path.
// It names files below the folder as DIR/name.
func (e *exposure) mistakes(at, text string, env map[string]string) string {
	e.t.Helper()
	e.write(at, strings.ReplaceAll(text, "DIR", e.dir))
	c, err := Load(filepath.Join(e.dir, at), func(name string) string {
		return strings.ReplaceAll(env[name], "DIR", e.dir)
	})
	if c == nil {
		e.t.Fatal(err)
	}
	var found []string
	problems, _ := Join(build(c)).(Errors)
	for _, problem := range problems {
		if problem.Key == "frontend.dir" {
			found = append(found, strings.ReplaceAll(problem.Error(), e.dir, "DIR"))
		}
	}
	return strings.Join(found, "\n")
}

func TestFrontendDirWithSecretsIsRefused(t *testing.T) {
	t.Parallel()
	const app = "\nfrontend: {dir: DIR/app}\n"
	for name, test := range map[string]struct{ at, text, want string }{
		"configuration":        {"app/c.yaml", app, "DIR/app/c.yaml"},
		"deep configuration":   {"app/a/b/c.yaml", app, "DIR/app/a/b/c.yaml"},
		"dotfile":              {"app/.c.yaml", app, "DIR/app/.c.yaml"},
		"roundabout directory": {"app/c.yaml", "frontend: {dir: DIR/private/../app/}", "DIR/app/c.yaml"},
		"folder above":         {"c.yaml", "frontend: {dir: DIR}", "DIR/c.yaml"},
		"missing secret": {"c.yaml", "oidc: {client_secret_file: DIR/app/none/secret}" + app,
			"DIR/app/none/secret (oidc.client_secret_file)"},
		"list of secrets": {"c.yaml", "session: {keys_file: DIR/app/keys}" + app, "DIR/app/keys (session.keys_file)"},
		"certificate": {"c.yaml", "server: {tls: {cert_file: DIR/app/c.pem, key_file: DIR/k.pem}}" + app,
			"DIR/app/c.pem (server.tls.cert_file)"},
		"key": {"c.yaml", "server: {tls: {cert_file: DIR/c.pem, key_file: DIR/app/k.pem}}" + app,
			"DIR/app/k.pem (server.tls.key_file)"},
		"key of a route": {"c.yaml", "routes: [{path: /a/, upstream_tls: {key_file: DIR/app/k.pem}}]" + app,
			"DIR/app/k.pem (routes[0].upstream_tls.key_file)"},
		"password": {"c.yaml", "store: {url: 'redis://localhost', password_file: DIR/app/password}" + app,
			"DIR/app/password (store.password_file)"},
		"store":     {"c.yaml", "store: {url: 'file:DIR/app/data'}" + app, "DIR/app/data (store.url)"},
		"audit log": {"c.yaml", "log: {audit: DIR/app/audit.log}" + app, "DIR/app/audit.log (log.audit)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := newExposure(t).mistakes(test.at, test.text, nil); !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q in it", got, test.want)
			}
		})
	}
}

func TestLinksDoNotHideSecretsInFrontendDir(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(e *exposure) (at, text string){
		"the directory is a link": func(e *exposure) (string, string) {
			e.link("app", "current")
			return "app/c.yaml", "frontend: {dir: DIR/current}"
		},
		"the configuration is a link": func(e *exposure) (string, string) {
			e.write("app/real.yaml", "")
			e.link("app/real.yaml", "c.yaml")
			return "c.yaml", "frontend: {dir: DIR/app}"
		},
		"a secret is below a link": func(e *exposure) (string, string) {
			e.link("app", "secrets")
			return "c.yaml", "oidc: {client_secret_file: DIR/secrets/x}\nfrontend: {dir: DIR/app}"
		},
		"a link in the app leads out": func(e *exposure) (string, string) {
			e.link("private/secret", "app/secret")
			return "c.yaml", "oidc: {client_secret_file: DIR/app/secret}\nfrontend: {dir: DIR/app}"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newExposure(t)
			at, text := prepare(e)
			if got := e.mistakes(at, text, nil); got == "" {
				t.Error("got no mistake of frontend.dir, want one")
			}
		})
	}
}

func TestSecretsOfTheEnvironmentCountToo(t *testing.T) {
	t.Parallel()
	got := newExposure(t).mistakes("c.yaml", "frontend: {dir: DIR/app}",
		map[string]string{"CLOAKROOM_OIDC_CLIENT_SECRET_FILE": "DIR/app/secret"})
	if want := "DIR/app/secret (oidc.client_secret_file)"; !strings.Contains(got, want) {
		t.Errorf("got %q, want %q in it", got, want)
	}
}

func TestFrontendDirBesideSecretsIsValid(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ at, text string }{
		"beside":              {"c.yaml", "frontend: {dir: DIR/app}"},
		"a similar name":      {"app2/c.yaml", "frontend: {dir: DIR/app}"},
		"below the secrets":   {"c.yaml", "oidc: {client_secret_file: DIR/secret}\nfrontend: {dir: DIR/app}"},
		"a public template":   {"c.yaml", "server: {page_file: DIR/app/index.html}\nfrontend: {dir: DIR/app}"},
		"the log is stdout":   {"c.yaml", "log: {audit: stdout}\nfrontend: {dir: DIR/app}"},
		"the store is a name": {"c.yaml", "store: {url: 'redis://localhost/app'}\nfrontend: {dir: DIR/app}"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := newExposure(t).mistakes(test.at, test.text, nil); got != "" {
				t.Errorf("got %q, want no mistake of frontend.dir", got)
			}
		})
	}
}
