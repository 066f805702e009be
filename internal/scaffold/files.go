package scaffold

import (
	"bytes"
	"cmp"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"text/template"

	"go.yaml.in/yaml/v4"
)

// Answers are what only the team knows.
type Answers struct {
	Issuer    string // of the identity provider
	ClientID  string // there
	PublicURL string // that browsers will see in production
	APIs      []API
	Key       string // for session.keys

	// Named are the files that a configuration names that exists already, by
	// their keys, relative to the project if they are in it. Nil means that
	// there is no configuration: Files writes one.
	Named map[string]string
}

// Files that a new configuration names.
const (
	ClientSecretFile = "secrets/.env.client-secret"
	sessionKeysFile  = "secrets/.env.session-keys"
)

// namedFiles returns the files that the configuration names, by their keys.
func (a *Answers) namedFiles() map[string]string {
	if a.Named != nil {
		return a.Named
	}
	return map[string]string{"oidc.client_secret_file": ClientSecretFile, "session.keys_file": sessionKeysFile}
}

// API is a route to an API.
type API struct {
	Path     string // such as /api/
	Upstream string // such as http://localhost:3000
}

// ParseAPI parses text such as /api=http://localhost:3000.
func ParseAPI(text string) (API, error) {
	prefix, upstream, found := strings.Cut(text, "=")
	if !found || !strings.HasPrefix(prefix, "/") || strings.Trim(prefix, "/") == "" {
		return API{}, fmt.Errorf("%q is not an API such as /api=http://localhost:3000", text)
	}
	if err := CheckURL(upstream, "http://localhost:3000"); err != nil {
		return API{}, fmt.Errorf("the URL of %s: %w", prefix, err)
	}
	return API{strings.TrimSuffix(prefix, "/") + "/", upstream}, nil
}

// CheckURL returns an error unless raw is an http or https URL. The error has
// an example.
func CheckURL(raw, example string) error {
	u, err := url.Parse(raw)
	if err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") {
		return nil
	}
	if _, _, notHostPort := net.SplitHostPort(raw); notHostPort == nil && !strings.Contains(raw, "://") {
		scheme, _, _ := strings.Cut(example, "://")
		return fmt.Errorf("%q has no scheme; write %s://%s", raw, scheme, strings.TrimPrefix(raw, "//"))
	}
	return fmt.Errorf("%q is not a URL such as %s", raw, example)
}

// File is a file to be written.
type File struct {
	Name string // relative to the project, with slashes
	Text []byte
	Mode fs.FileMode
}

//go:embed cloakroom.yaml.tmpl
var configText string

var configTemplate = template.Must(template.New("").Funcs(template.FuncMap{"yaml": asYAML}).Parse(configText))

// asYAML returns a scalar as YAML writes it, with quotes if it needs them.
func asYAML(text string) (string, error) {
	b, err := yaml.Marshal(text)
	return strings.TrimSpace(string(b)), err
}

// Files returns the files for a project: the configuration, the session key,
// the settings with which its development server forwards requests, and the
// browser client, whose files are in client. A configuration that exists may
// have its secrets elsewhere: files that it does not name are left out.
//
// Development servers serve files of the project by their path. Names of
// secrets begin with ".env.", which Vite never serves (server.fs.deny), and
// webpack's server neither (hidden files).
func Files(project *Project, answers Answers, client fs.FS) ([]File, error) {
	var config bytes.Buffer
	err := configTemplate.Execute(&config, struct {
		Answers
		OutDir, Listen, ClientSecretFile, KeysFile string

		OnePage bool // the 404.html of its build is not a sign that the app has more
	}{answers, project.OutDir, listenAddress(answers.PublicURL), ClientSecretFile, sessionKeysFile,
		project.Framework == Nuxt})
	if err != nil {
		return nil, err
	}
	files := []File{{"cloakroom.yaml", config.Bytes(), 0o644}}
	named := answers.namedFiles()
	if named["session.keys_file"] == sessionKeysFile {
		files = append(files, File{sessionKeysFile, []byte(answers.Key + "\n"), 0o600})
	}
	for _, name := range named {
		if strings.HasPrefix(name, "secrets/") {
			files = append(files, File{"secrets/.gitignore", []byte("*\n"), 0o644})
			break
		}
	}
	proxy, err := proxyFile(project, answers)
	if proxy != nil {
		files = append(files, *proxy)
		if types := proxyTypes(project.Framework); project.UsesTypeScript && types != "" {
			files = append(files, File{"cloakroom.proxy.d.mts", []byte(types), 0o644})
		}
	}
	if err != nil || project.HasClient || project.Framework == Plain { // a page loads /bff/client.js
		return files, err
	}
	parts := []string{"client"}
	if project.Library != "" {
		parts = append(parts, project.Library)
	}
	if project.Library == "react" || project.Library == "angular" { // they import it
		parts = append(parts, "notice")
	}
	for _, part := range parts {
		for _, suffix := range []string{".js", ".d.ts"} {
			text, err := fs.ReadFile(client, part+suffix)
			if err != nil {
				return nil, err
			}
			files = append(files, File{path.Join(project.SourceDir, "cloakroom", part+suffix), text, 0o644})
		}
	}
	return files, nil
}

// listenAddress returns a value of server.listen. There is no proxy in front of
// a public URL with http, which is on this machine.
func listenAddress(publicURL string) string {
	u, err := url.Parse(publicURL)
	if err != nil || u.Scheme != "http" {
		return "127.0.0.1:8080"
	}
	return "127.0.0.1:" + cmp.Or(u.Port(), "80")
}

// broker is the address of a broker on the developer's machine, for the
// settings of a development server.
const broker = "http://localhost:8080"

// proxySettings are those of one path, as Vite, the Angular CLI and webpack
// have them. The Host must stay as the browser sent it.
type proxySettings struct {
	Context      []string `json:"context,omitempty"` // of webpack
	Target       string   `json:"target"`
	ChangeOrigin bool     `json:"changeOrigin"`
	WebSocket    bool     `json:"ws"`
}

// proxyFile returns the settings of the project's development server, or nil if
// it has none or cannot keep the Host.
func proxyFile(project *Project, answers Answers) (*File, error) {
	paths := []string{"/bff/"}
	for _, api := range answers.APIs {
		paths = append(paths, api.Path)
	}
	byPath := make(map[string]proxySettings)
	for _, prefix := range paths {
		byPath[prefix] = proxySettings{Target: broker, WebSocket: true}
	}
	switch project.Framework {
	case Angular:
		text, err := json.MarshalIndent(byPath, "", "  ")
		return &File{"proxy.conf.json", append(text, '\n'), 0o644}, err
	case Vite, SvelteKit, Astro, Nuxt, ReactRouter, Tanstack:
		text, err := json.MarshalIndent(byPath, "", "  ")
		return &File{"cloakroom.proxy.mjs", module(text, "server.proxy of Vite"), 0o644}, err
	case VueCLI, Webpack:
		one := []proxySettings{{Context: paths, Target: broker, WebSocket: true}}
		text, err := json.MarshalIndent(one, "", "  ")
		return &File{"cloakroom.proxy.mjs", module(text, "devServer.proxy of webpack"), 0o644}, err
	case Next, CreateReact, Plain: // Next.js and Create React App replace the Host
		return nil, nil
	}
	return nil, nil
}

// proxyTypes returns the types of cloakroom.proxy.mjs, or "" for a framework
// that has another file. Without them, TypeScript refuses to import it.
func proxyTypes(framework Framework) string {
	switch framework {
	case Vite, SvelteKit, Astro, Nuxt, ReactRouter, Tanstack:
		return "export declare const proxy: Record<string, { target: string; changeOrigin: boolean; ws: boolean }>;\n"
	case VueCLI, Webpack:
		return "export declare const proxy: " +
			"{ context: string[]; target: string; changeOrigin: boolean; ws: boolean }[];\n"
	}
	return ""
}

// module returns a JavaScript module with settings.
func module(settings []byte, setting string) []byte {
	return fmt.Appendf(nil, `// For %s, if the development server is in front of Cloakroom. The
// server.public_url of Cloakroom is then the URL of the development server.
// "cloakroom dev" does not need this file.
export const proxy = %s;
`, setting, settings)
}

// Write writes files into a directory. It never overwrites one: it returns the
// names of those that it wrote, and of those that exist.
func Write(dir string, files []File) (written, kept []string, err error) {
	for _, file := range files {
		name := filepath.Join(dir, filepath.FromSlash(file.Name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return written, kept, err
		}
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, file.Mode)
		if errors.Is(err, fs.ErrExist) {
			kept = append(kept, file.Name)
			continue
		}
		if err != nil {
			return written, kept, err
		}
		_, err = f.Write(file.Text)
		if err := errors.Join(err, f.Close()); err != nil { // such as a full disk
			return written, kept, errors.Join(err, os.Remove(name)) // a part of it would be kept the next time
		}
		written = append(written, file.Name)
	}
	return written, kept, nil
}
