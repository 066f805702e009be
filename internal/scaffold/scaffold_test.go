package scaffold_test

import (
	"bytes"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/scaffold"
	"github.com/cloakroom-bff/cloakroom/web"
)

// write writes files into a new directory, by name.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDetectKnowsTheFrameworks(t *testing.T) {
	t.Parallel()
	const angular = `{"dependencies": {"@angular/core": "21"}, "scripts": {"start": "ng serve"}}`
	for name, test := range map[string]struct {
		files map[string]string
		want  scaffold.Project
	}{
		"Vite": {
			map[string]string{
				"package.json": `{"scripts": {"dev": "vite"}, "devDependencies": {"vite": "7"}}`, "src/main.ts": "",
			},
			scaffold.Project{Framework: scaffold.Vite, OutDir: "dist", DevScript: "npm run dev", SourceDir: "src"},
		},
		"a byte order mark, as some editors write it": {
			map[string]string{"package.json": "\ufeff" + `{"devDependencies": {"vite": "7"}}`},
			scaffold.Project{Framework: scaffold.Vite, OutDir: "dist", SourceDir: "."},
		},
		"SvelteKit, which uses Vite, with pnpm": {
			map[string]string{
				"package.json":   `{"scripts": {"dev": "x"}, "devDependencies": {"vite": "7", "@sveltejs/kit": "2"}}`,
				"pnpm-lock.yaml": "",
			},
			scaffold.Project{Framework: scaffold.SvelteKit, OutDir: "build",
				DevScript: "pnpm run dev", SourceDir: ".",
				Export: "@sveltejs/adapter-static"},
		},
		"two libraries, and what two package managers left": {
			map[string]string{
				"package.json": `{"scripts": {"dev": "x"}, "dependencies": {"vue": "3", "svelte": "5", "react": "19"},
					"devDependencies": {"vite": "8"}}`,
				"bun.lock": "", "yarn.lock": "", "pnpm-lock.yaml": "",
			},
			scaffold.Project{Framework: scaffold.Vite, OutDir: "dist",
				DevScript: "pnpm run dev", SourceDir: ".", Library: "react"},
		},
		"Angular": {
			map[string]string{"package.json": angular, "angular.json": `{"projects": {"shop": {"architect": {"build":
				{"builder": "@angular/build:application", "options": {}}}}}}`},
			scaffold.Project{Framework: scaffold.Angular, OutDir: "dist/shop/browser",
				DevScript: "npm run start", SourceDir: ".", Library: "angular"},
		},
		"Angular with a directory": {
			map[string]string{"package.json": angular, "angular.json": `{"projects": {"shop": {"architect": {"build":
				{"builder": "@angular/build:application",
				"options": {"outputPath": {"base": "out", "browser": ""}}}}}}}`},
			scaffold.Project{Framework: scaffold.Angular, OutDir: "out",
				DevScript: "npm run start", SourceDir: ".", Library: "angular"},
		},
		"Angular with the older builder": {
			map[string]string{"package.json": angular, "angular.json": `{"projects": {"shop": {"architect": {"build":
				{"builder": "@angular-devkit/build-angular:browser", "options": {"outputPath": "dist/old"}}}}}}`},
			scaffold.Project{Framework: scaffold.Angular, OutDir: "dist/old",
				DevScript: "npm run start", SourceDir: ".", Library: "angular"},
		},
		"Vite with TypeScript": {
			map[string]string{"package.json": `{"devDependencies": {"vite": "8", "typescript": "6"}}`},
			scaffold.Project{Framework: scaffold.Vite, OutDir: "dist",
				SourceDir: ".", UsesTypeScript: true},
		},
		"pages beside the configuration": {
			map[string]string{"index.html": "", "public/logo.svg": ""},
			scaffold.Project{Framework: scaffold.Plain, OutDir: "public", SourceDir: ".", MustMove: true},
		},
		"pages in a folder": {
			map[string]string{"www/index.html": "", "dist/other.html": ""},
			scaffold.Project{Framework: scaffold.Plain, OutDir: "www", SourceDir: "."},
		},
		"sources and built pages": {
			map[string]string{"index.html": "", "src/index.html": "", "dist/index.html": ""},
			scaffold.Project{Framework: scaffold.Plain, OutDir: "dist", SourceDir: "src"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := scaffold.Detect(write(t, test.files))
			if err != nil {
				t.Fatal(err)
			}
			if *got != test.want {
				t.Errorf("got %+v, want %+v", *got, test.want)
			}
		})
	}
}

// The root of a monorepo has the lock file, and dependencies of all apps.
func TestDetectLooksAtTheRootOfAMonorepo(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{
		"yarn.lock": "", "repo/.git/HEAD": "", // of the repository of another project
		"repo/mono/package.json":   `{"devDependencies": {"typescript": "6"}}`,
		"repo/mono/pnpm-lock.yaml": "",
		"repo/mono/apps/web/package.json": `{"scripts": {"dev": "vite"},
			"devDependencies": {"vite": "8", "@cloakroom-bff/client": "1"}}`,
		"repo/mono/apps/web/tsconfig.json": "{}",
		"repo/other/package.json":          `{"scripts": {"dev": "vite"}, "devDependencies": {"vite": "8"}}`,
	})
	want := scaffold.Project{Framework: scaffold.Vite, OutDir: "dist",
		DevScript: "pnpm run dev", SourceDir: ".", HasClient: true, UsesTypeScript: true}
	if got, err := scaffold.Detect(filepath.Join(dir, "repo/mono/apps/web")); err != nil || *got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	got, err := scaffold.Detect(filepath.Join(dir, "repo/other"))
	if err != nil || got.DevScript != "npm run dev" {
		t.Errorf("without a lock file in its repository: got %+v, %v, want npm", got, err)
	}
}

func TestPartOfAProjectIsNoPlainHTML(t *testing.T) {
	t.Parallel()
	for _, files := range []map[string]string{
		{"vite.config.ts": "", "index.html": ""},
		{"project.json": "{}", "src/index.html": ""},
	} {
		got, err := scaffold.Detect(write(t, files))
		if err == nil || !strings.Contains(err.Error(), "but no package.json: run this in the folder above") {
			t.Errorf("%v: got %+v, %v, want an error", files, got, err)
		}
	}
}

func TestDetectSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                                     "is not valid JSON",
		"{":                                    "is not valid JSON",
		`{"dependencies": []}`:                 "is not valid JSON for this file: dependencies cannot be",
		`[]`:                                   ": the whole file cannot be of the type array",
		`{"workspaces": ["apps/*"]}`:           "In a monorepo, run this in the folder of the app",
		`{"dependencies": {"express": "5"}}`:   "names no framework",
		strings.Repeat(" ", 1<<20) + "{}":      "more than 1 MiB",
		`{"dependencies": {"Vite": "a name"}}`: "names no framework",
	} {
		_, err := scaffold.Detect(write(t, map[string]string{"package.json": text}))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: got %v, want %q", text, err, want)
		}
	}
	if _, err := scaffold.Detect(t.TempDir()); err == nil || !strings.Contains(err.Error(), "folder of your app") {
		t.Errorf("an empty folder: got %v", err)
	}
}

func TestBrokerListensAtALocalPublicURL(t *testing.T) {
	t.Parallel()
	for publicURL, want := range map[string]string{
		"https://app.example.com": "listen: 127.0.0.1:8080\n", "http://localhost:9080/shop": "listen: 127.0.0.1:9080\n",
		"http://localhost": "listen: 127.0.0.1:80\n", "https://localhost:8443": "listen: 127.0.0.1:8080\n",
	} {
		files, err := scaffold.Files(&scaffold.Project{Framework: scaffold.Plain, OutDir: "public"},
			scaffold.Answers{PublicURL: publicURL}, web.ClientFiles())
		if err != nil {
			t.Fatal(err)
		}
		if got := string(files[0].Text); !strings.Contains(got, want) {
			t.Errorf("%s: got\n%s\nwant %q", publicURL, got, want)
		}
	}
}

func TestAngularOutputAroundTheProjectIsRefused(t *testing.T) {
	t.Parallel()
	for base, refused := range map[string]bool{".": true, "..": true, "./": true, "/": true,
		"../out": false, "dist": false} {
		_, err := scaffold.Detect(write(t, map[string]string{
			"package.json": `{"dependencies": {"@angular/core": "21"}}`,
			"angular.json": `{"projects": {"shop": {"architect": {"build": {"builder": "@angular/build:application",
				"options": {"outputPath": {"base": "` + base + `", "browser": ""}}}}}}}`,
		}))
		if got := err != nil; got != refused {
			t.Errorf("outputPath %q: got %v, want refused: %v", base, err, refused)
		}
	}
}

// Vite serves every other file of the project, wherever it is.
func TestSecretsHaveNamesThatDevServersDeny(t *testing.T) {
	t.Parallel()
	files, err := scaffold.Files(&scaffold.Project{Framework: scaffold.Vite}, scaffold.Answers{}, web.ClientFiles())
	if err != nil {
		t.Fatal(err)
	}
	config := string(files[0].Text)
	var secrets []string
	for line := range strings.Lines(config) {
		if key, name, ok := strings.Cut(strings.TrimSpace(line), "_file: "); ok && !strings.HasPrefix(key, "#") {
			secrets = append(secrets, name)
		}
	}
	for _, f := range files {
		if f.Mode == 0o600 {
			secrets = append(secrets, f.Name)
		}
	}
	if got, want := len(secrets), 3; got != want { // the session key twice
		t.Errorf("got %d names of secrets in\n%s, want %d", got, config, want)
	}
	for _, name := range secrets {
		if !strings.HasPrefix(path.Base(name), ".env.") {
			t.Errorf("got %s, want a name that begins with .env.", name)
		}
	}
}

func TestProxySettingsHaveTypesForTypeScript(t *testing.T) {
	t.Parallel()
	for framework, want := range map[scaffold.Framework]string{
		scaffold.Vite: "Record<string, {", scaffold.Webpack: "{ context: string[];", scaffold.Angular: "",
		scaffold.Next: "", scaffold.Plain: "",
	} {
		for _, usesTypeScript := range []bool{true, false} {
			files, err := scaffold.Files(&scaffold.Project{Framework: framework, UsesTypeScript: usesTypeScript},
				scaffold.Answers{}, web.ClientFiles())
			if err != nil {
				t.Fatal(err)
			}
			isTypes := func(f scaffold.File) bool { return f.Name == "cloakroom.proxy.d.mts" }
			i := slices.IndexFunc(files, isTypes)
			switch wanted := usesTypeScript && want != ""; {
			case !wanted && i >= 0:
				t.Errorf("%s, TypeScript %v: got types, want none", framework, usesTypeScript)
			case wanted && (i < 0 || !strings.Contains(string(files[i].Text), want)):
				t.Errorf("%s: got file %d, want types with %q", framework, i, want)
			}
		}
	}
}

func TestProxySettingsKeepTheHost(t *testing.T) {
	t.Parallel()
	answers := scaffold.Answers{APIs: []scaffold.API{{Path: "/api/", Upstream: "http://localhost:3000"}}}
	for framework, want := range map[scaffold.Framework]string{
		scaffold.Angular: "proxy.conf.json", scaffold.Vite: "cloakroom.proxy.mjs",
		scaffold.Webpack: "cloakroom.proxy.mjs", scaffold.Next: "", scaffold.Plain: "",
	} {
		files, err := scaffold.Files(&scaffold.Project{Framework: framework, SourceDir: "src"}, answers,
			web.ClientFiles())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(files, func(f scaffold.File) bool { return strings.Contains(f.Name, "proxy") })
		if i < 0 {
			if want != "" {
				t.Errorf("%s: got no settings, want %s", framework, want)
			}
			continue
		}
		if files[i].Name != want {
			t.Errorf("%s: got %s, want %q", framework, files[i].Name, want)
		}
		for _, needed := range []string{`"changeOrigin": false`, `"/api/"`, `"/bff/"`} {
			if !strings.Contains(string(files[i].Text), needed) {
				t.Errorf("%s: the settings lack %s:\n%s", framework, needed, files[i].Text)
			}
		}
	}
}

func TestClientHasTheHooksOfTheLibrary(t *testing.T) {
	t.Parallel()
	for manifest, want := range map[string]string{
		`{"devDependencies": {"vite": "8"}, "dependencies": {"react": "19"}}`: "react",
		`{"devDependencies": {"vite": "8", "vue": "3"}}`:                      "vue",
		`{"dependencies": {"@angular/core": "21"}}`:                           "angular",
		`{"devDependencies": {"@sveltejs/kit": "2", "svelte": "5"}}`:          "svelte",
		`{"devDependencies": {"vite": "8"}}`:                                  "",
		`{"dependencies": {"vite": "8", "@cloakroom-bff/client": "1"}}`:       "",
	} {
		project, err := scaffold.Detect(write(t, map[string]string{"package.json": manifest, "src/main.js": ""}))
		if err != nil {
			t.Fatal(err)
		}
		files, err := scaffold.Files(project, scaffold.Answers{}, web.ClientFiles())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range files {
			if name, ok := strings.CutPrefix(f.Name, "src/cloakroom/"); ok {
				got = append(got, name)
			}
		}
		all := []string{"client.js", "client.d.ts"}
		if strings.Contains(manifest, "@cloakroom-bff/client") {
			all = nil
		} else if want != "" {
			all = append(all, want+".js", want+".d.ts")
		}
		if want == "react" || want == "angular" { // they import it
			all = append(all, "notice.js", "notice.d.ts")
		}
		if !slices.Equal(got, all) {
			t.Errorf("%s: got %v, want %v", manifest, got, all)
		}
	}
}

// Create React App builds no app with a file that breaks its rules, such as
// no-restricted-globals.
func TestWrittenFilesKeepTheRulesOfLinters(t *testing.T) {
	t.Parallel()
	global := regexp.MustCompile(`(^|[^.\w])(location\.|addEventListener\(|history\.|globalThis\b)`)
	for _, library := range []string{"react", "vue", "svelte"} {
		files, err := scaffold.Files(&scaffold.Project{Framework: scaffold.CreateReact, SourceDir: "src",
			Library: library}, scaffold.Answers{}, web.ClientFiles())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if !strings.HasSuffix(f.Name, ".js") || bytes.HasPrefix(f.Text, []byte("/* eslint-disable ")) {
				continue
			}
			if found := global.FindString(string(f.Text)); found != "" {
				t.Errorf("%s: got %q, want no such global variable", f.Name, found)
			}
		}
	}
}

func TestWriteKeepsWhatExists(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{"b": "old"})
	if err := os.Symlink("/nowhere", filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	written, kept, err := scaffold.Write(dir, []scaffold.File{
		{Name: "a/x", Text: []byte("new"), Mode: 0o600}, {Name: "b", Text: []byte("new"), Mode: 0o644},
		{Name: "c", Text: []byte("new"), Mode: 0o644},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(written, []string{"a/x"}) {
		t.Errorf("written: got %v, want a/x", written)
	}
	if !slices.Equal(kept, []string{"b", "c"}) {
		t.Errorf("kept: got %v, want b and c", kept)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "b")); err != nil || string(text) != "old" {
		t.Errorf("b: got %q, %v, want it unchanged", text, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "a/x")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a/x: got %v, %v, want mode 0600", info, err)
	}
}

func TestParseAPI(t *testing.T) {
	t.Parallel()
	if got, err := scaffold.ParseAPI("/api=http://localhost:3000"); err != nil || got.Path != "/api/" {
		t.Errorf("got %v, %v, want a path with its slash", got, err)
	}
	for _, text := range []string{"", "/api/", "api=http://x", "/api/=localhost:3000", "/api/=http://", "=http://x",
		"/=http://x", "//=http://x"} {
		if got, err := scaffold.ParseAPI(text); err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
		}
	}
}

// A configuration that exists may have its secrets elsewhere.
func TestSecretsThatTheConfigurationNamesAreWritten(t *testing.T) {
	t.Parallel()
	const keys, client, ignore = "secrets/.env.session-keys", "secrets/.env.client-secret", "secrets/.gitignore"
	for name, test := range map[string]struct {
		named map[string]string
		want  []string
	}{
		"no configuration":  {nil, []string{keys, ignore}},
		"no files":          {map[string]string{}, nil},
		"the same files":    {map[string]string{"session.keys_file": keys}, []string{keys, ignore}},
		"keys elsewhere":    {map[string]string{"session.keys_file": "/run/secrets/session-keys"}, nil},
		"keys of that name": {map[string]string{"session.keys_file": "secrets/session-keys"}, []string{ignore}},
		"a client secret":   {map[string]string{"oidc.client_secret_file": client}, []string{ignore}},
		"another key":       {map[string]string{"oidc.client_secret_file": keys}, []string{ignore}},
	} {
		files, err := scaffold.Files(&scaffold.Project{Framework: scaffold.Vite},
			scaffold.Answers{Key: "a key", Named: test.named}, web.ClientFiles())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range files {
			if strings.HasPrefix(f.Name, "secrets/") || f.Mode == 0o600 {
				got = append(got, f.Name)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
}
