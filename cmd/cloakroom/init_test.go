package main

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

func TestInitWritesAConfigurationThatIsValid(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"package.json":    `{"scripts": {"dev": "vite"}, "devDependencies": {"vite": "7"}}`,
		"dist/index.html": "<!doctype html>",
		// What init asks the team to add:
		"secrets/.env.client-secret": "a secret of the client\n",
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		overwrite(t, name, text)
	}
	args := []string{"init", "--dir", dir, "--issuer", "https://id.example.com", "--client-id", "spa: yes",
		"--public-url", "https://app.example.com", "--api", "/api=http://localhost:3000"}
	var out, stderr bytes.Buffer
	noEnv := func(string) string { return "" }
	if err := run(t.Context(), args, noEnv, strings.NewReader(""), &out, &stderr); err != nil {
		t.Fatalf("got %v\n%s", err, &stderr)
	}
	for _, want := range []string{"wrote cloakroom.yaml", "Next, in the folder " + dir + ":\n",
		"cloakroom dev --config cloakroom.yaml -- npm run dev",
		"redirect URI https://app.example.com/bff/callback",
		"back-channel logout URI, if it has one: https://app.example.com/bff/backchannel-logout\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q:\n%s", want, &out)
		}
	}
	file := filepath.Join(dir, "cloakroom.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strings.NewReplacer("secrets/", dir+"/secrets/", "dir: dist",
		"dir: "+dir+"/dist").
		Replace(string(text))), 0o644); err != nil {
		t.Fatal(err)
	}
	var findings bytes.Buffer
	err = run(t.Context(), []string{"check", "--offline", "--config", file}, noEnv, strings.NewReader(""),
		&findings, &stderr)
	if err != nil {
		t.Errorf("check: got %v\n%s", err, &findings)
	}
	out.Reset()
	if err := run(t.Context(), args, noEnv, strings.NewReader(""), &out, &stderr); err != nil {
		t.Fatalf("again: got %v", err)
	}
	if !strings.Contains(out.String(), "kept cloakroom.yaml") || strings.Contains(out.String(), "wrote ") {
		t.Errorf("again: got\n%s\nwant everything kept", &out)
	}
}

func TestInitNamesTheOptionThatIsMissingOrWrong(t *testing.T) {
	t.Parallel()
	const good = "--issuer https://i --client-id x --public-url https://a"
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "index.html"), "<!doctype html>")
	for args, want := range map[string]string{
		"": "--issuer is required",
		"--issuer id.example.com --client-id x --public-url https://a": `--issuer: "id.example.com" is not a URL`,
		"--issuer https://id.example.com":                              "--client-id is required",
		good + " --api /api":                                           `--api: "/api" is not an API`,
		// What check would refuse:
		good + " --issuer http://i":                    `--issuer: "http://i": plain http`,
		good + " --public-url http://a":                `--public-url: "http://a": without https`,
		good + " --public-url https://a?b":             "--public-url: ",
		good + " --api /bff=http://b":                  `--api: "/bff/" is under`,
		good + " --api /b=http://u:p@b":                "--api: ",
		good + " --api /b=http://b --api /b/=http://c": `--api: "/b/" is the path of another route`,
	} {
		var stderr bytes.Buffer
		err := run(t.Context(), append([]string{"init", "--dir", dir}, strings.Fields(args)...),
			func(string) string { return "" }, strings.NewReader(""), &bytes.Buffer{}, &stderr)
		if exitCode(err) != 2 || !strings.Contains(stderr.String(), want) {
			t.Errorf("%q: got status %d, %s; want 2 and %q", args, exitCode(err), &stderr, want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "cloakroom.yaml")); err == nil {
		t.Error("a file was written in spite of a mistake")
	}
}

func TestInitAsksAgainAfterAMistake(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "index.html"), "<!doctype html>")
	var out bytes.Buffer
	i := initializer{dir: dir, out: &out, in: bufio.NewScanner(strings.NewReader(strings.Join([]string{
		"id.example.com", "https://id.example.com", "", "spa", "http://app.example.com", "https://app.example.com",
		"/bff=http://localhost:1", "/api=http://localhost:3000", "/api=http://localhost:4000", "",
	}, "\n") + "\n"))}
	if err := i.run(false); err != nil {
		t.Fatalf("got %v\n%s", err, &out)
	}
	for question, want := range map[string]int{
		"URL of your identity provider": 2, "Client ID there": 2, "URL of the app": 2, "An API": 4,
	} {
		if got := strings.Count(out.String(), question); got != want {
			t.Errorf("%q: asked %d times, want %d:\n%s", question, got, want, &out)
		}
	}
	cfg, err := config.Load(filepath.Join(dir, "cloakroom.yaml"), func(string) string { return "" })
	if cfg == nil {
		t.Fatal(err)
	}
	if got, want := cfg.Server.PublicURL, "https://app.example.com"; got != want {
		t.Errorf("server.public_url: got %q, want %q", got, want)
	}
	if len(cfg.Routes) != 1 || cfg.Routes[0].Path != "/api/" || cfg.Routes[0].Upstream[0] != "http://localhost:3000" {
		t.Errorf("routes: got %+v, want /api/ alone", cfg.Routes)
	}
}

func TestInitWithoutATerminalAsksNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "index.html"), "<!doctype html>")
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var out, stderr bytes.Buffer
	err = run(t.Context(), []string{"init", "--dir", dir, "--issuer", "https://id.example.com", "--client-id", "spa",
		"--public-url", "https://app.example.com"}, func(string) string { return "" }, null, &out, &stderr)
	if err != nil {
		t.Fatalf("got %v\n%s", err, &stderr)
	}
	if strings.Contains(out.String(), "An API") {
		t.Errorf("got a question:\n%s", &out)
	}
}

func TestInitUsesTheConfigurationThatExists(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "package.json"), `{"devDependencies": {"vite": "8"}}`)
	overwrite(t, filepath.Join(dir, "cloakroom.yaml"), `server: {public_url: 'https://app.example.com'}
oidc: {issuer: 'https://id.example.com', client_id: spa}
routes: [{path: /orders/, upstream: 'http://localhost:3000', token: user}]
`)
	var out, stderr bytes.Buffer
	noEnv := func(string) string { return "" }
	args := []string{"init", "--dir", dir}
	if err := run(t.Context(), args, noEnv, strings.NewReader(""), &out, &stderr); err != nil {
		t.Fatalf("got %v\n%s", err, &stderr)
	}
	for _, want := range []string{"kept cloakroom.yaml", "client at https://id.example.com",
		"redirect URI https://app.example.com/bff/callback"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q:\n%s", want, &out)
		}
	}
	proxy, err := os.ReadFile(filepath.Join(dir, "cloakroom.proxy.mjs"))
	if err != nil || !strings.Contains(string(proxy), `"/orders/"`) {
		t.Errorf("cloakroom.proxy.mjs: got %s, %v, want the route /orders/", proxy, err)
	}
	overwrite(t, filepath.Join(dir, "cloakroom.yaml"), "server: [")
	err = run(t.Context(), args, noEnv, strings.NewReader(""), &out, &stderr)
	if exitCode(err) != 2 || !strings.Contains(stderr.String(), "correct it, or remove it") {
		t.Errorf("not YAML: got status %d, %s; want 2 and what to do", exitCode(err), &stderr)
	}
}

// Without an export, out/ never exists, and build/ has the code of a server.
// TanStack Start names the page _shell.html if it is not told otherwise.
func TestInitSaysWhatMakesABuildOfFiles(t *testing.T) {
	t.Parallel()
	for dependency, want := range map[string]string{
		"next":          "Build with output: \"export\" in next.config.\n",
		"@sveltejs/kit": "Build with @sveltejs/adapter-static.\n",
		"nuxt":          "Build with ssr: false in nuxt.config, and nuxt generate.\n",
		"@react-router/dev": "Build with ssr: false in react-router.config.\n" +
			"      Otherwise the browser's files are not in build/client/ (frontend.dir).\n",
		"@tanstack/react-start": "Build with spa: { enabled: true, prerender: { outputPath: \"/index\" } } in " +
			"tanstackStart().\n      Otherwise the browser's files are not in dist/client/ (frontend.dir).\n",
	} {
		dir := t.TempDir()
		overwrite(t, filepath.Join(dir, "package.json"),
			`{"dependencies": {"`+dependency+`": "1"}, "devDependencies": {"vite": "8"}}`)
		var out, stderr bytes.Buffer
		args := []string{"init", "--dir", dir, "--issuer", "https://id.example.com", "--client-id", "spa",
			"--public-url", "https://app.example.com"}
		if err := run(t.Context(), args, noEnv, strings.NewReader(""), &out, &stderr); err != nil {
			t.Fatalf("%s: got %v\n%s", dependency, err, &stderr)
		}
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s: the output lacks %q:\n%s", dependency, want, &out)
		}
		// The 404.html of Nuxt would otherwise be the response to deep links.
		text, err := os.ReadFile(filepath.Join(dir, "cloakroom.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(text), "\n  fallback: index\n"); got != (dependency == "nuxt") {
			t.Errorf("%s: frontend.fallback is index: %v\n%s", dependency, got, text)
		}
	}
}

// What init has written for a folder of plain pages publishes no secret, even
// if the team sets frontend.dir to the folder itself.
func TestPlainPagesAreServedWithoutTheSecrets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "index.html"), "<!doctype html>")
	var out, stderr bytes.Buffer
	noEnv := func(string) string { return "" }
	args := []string{"init", "--dir", dir, "--issuer", "https://id.example.com", "--client-id", "spa",
		"--public-url", "https://app.example.com"}
	if err := run(t.Context(), args, noEnv, strings.NewReader(""), &out, &stderr); err != nil {
		t.Fatalf("got %v\n%s", err, &stderr)
	}
	if want := "Move index.html and all other files of the app to public/"; !strings.Contains(out.String(), want) {
		t.Errorf("the output lacks %q:\n%s", want, &out)
	}
	file := filepath.Join(dir, "cloakroom.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "dir: public\n") {
		t.Errorf("frontend.dir: got\n%s\nwant public", text)
	}
	overwrite(t, file, strings.NewReplacer("secrets/", dir+"/secrets/", "dir: public", "dir: "+dir).
		Replace(string(text)))
	overwrite(t, filepath.Join(dir, "secrets/.env.client-secret"), "a secret")
	for _, command := range [][]string{{"serve"}, {"check", "--offline"}} {
		out.Reset()
		stderr.Reset()
		err := run(t.Context(), append(command, "--config", file), noEnv, strings.NewReader(""), &out, &stderr)
		if err == nil {
			t.Fatalf("%s: got no error, want one about frontend.dir", command[0])
		}
		for _, want := range []string{"frontend.dir", file, "secrets/.env.session-keys", "secrets/.env.client-secret"} {
			if !strings.Contains(out.String()+stderr.String(), want) {
				t.Errorf("%s: got %s%s, want %q in it", command[0], &out, &stderr, want)
			}
		}
	}
}

// To open a pipe would wait for its writer.
func TestInitReadsNoPipe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "package.json"), `{"devDependencies": {"vite": "8"}}`)
	if err := syscall.Mkfifo(filepath.Join(dir, "cloakroom.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, stderr bytes.Buffer
	err := run(t.Context(), []string{"init", "--dir", dir}, noEnv, strings.NewReader(""), &out, &stderr)
	if got := exitCode(err); got != 2 || !strings.Contains(stderr.String()+err.Error(), "is not a regular file") {
		t.Errorf("got status %d, %v and %s, want 2 and that it is not a regular file", got, err, &stderr)
	}
}

func TestInitWritesNoSecretThatNothingReads(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		session, client string // of the configuration; DIR is its folder
		wrote           bool
		want            string // in the output
	}{
		"its own names": {"keys_file: secrets/.env.session-keys", "client_secret_file: secrets/.env.client-secret",
			true, "secret into secrets/.env.client-secret, with mode 600.\n      Keep the name"},
		"the whole path": {"keys_file: DIR/secrets/.env.session-keys",
			"client_secret_file: DIR/secrets/.env.client-secret",
			true, "secret into secrets/.env.client-secret, with mode 600.\n      Keep the name"},
		"other names": {"keys_file: /run/secrets/keys", "client_secret_file: ./other", false,
			"secret into other, with mode 600.\n  cloakroom check"},
		"values": {"keys: [PoUdRGFwrjUbcMvWN/zcVAJJSDNk7LLE6r5KGmYXRxs=]", "client_secret: a secret", false,
			"/bff/backchannel-logout\n  cloakroom check"},
		"nothing": {"", "", false, "/bff/backchannel-logout\n  cloakroom check"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			overwrite(t, filepath.Join(dir, "package.json"), `{"devDependencies": {"vite": "8"}}`)
			overwrite(t, filepath.Join(dir, "cloakroom.yaml"), strings.ReplaceAll(
				"server: {public_url: 'https://app.example.com'}\nsession: {"+test.session+"}\n"+
					"oidc: {issuer: 'https://id.example.com', client_id: spa, "+test.client+"}\n", "DIR", dir))
			var out, stderr bytes.Buffer
			err := run(t.Context(), []string{"init", "--dir", dir}, noEnv, strings.NewReader(""), &out, &stderr)
			if err != nil {
				t.Fatalf("got %v\n%s", err, &stderr)
			}
			for _, file := range []string{"secrets/.env.session-keys", "secrets/.gitignore"} {
				_, err := os.Stat(filepath.Join(dir, file))
				if got := err == nil; got != test.wrote || strings.Contains(out.String(), "wrote "+file) != test.wrote {
					t.Errorf("%s: got %t, want %t; output:\n%s", file, got, test.wrote, &out)
				}
			}
			if !strings.Contains(out.String(), test.want) {
				t.Errorf("got\n%s\nwant %q in it", &out, test.want)
			}
		})
	}
}
