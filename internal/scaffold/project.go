// Package scaffold writes the first configuration for a front-end project. It
// finds out how the project is built from its package.json.
package scaffold

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/smallfile"
)

// Project is what is known of a front-end project.
type Project struct {
	Framework Framework
	OutDir    string // of the production build, relative to the project
	Export    string // what makes the build write files for browsers there; empty: every build does
	DevScript string // command that starts it, such as "npm run dev"; empty: none was found
	SourceDir string // "src", or "." if there is none
	HasClient bool   // the npm package of the browser client is installed
	Library   string // part of the browser client for its components, such as "react"; empty: none

	UsesTypeScript bool
	// MustMove is true if the pages are where the configuration and its secrets
	// will be. They must be moved to OutDir.
	MustMove bool
}

// Framework is a tool that builds and serves apps.
type Framework string

// The frameworks that are recognised.
const (
	Angular     Framework = "Angular"
	Astro       Framework = "Astro"
	CreateReact Framework = "Create React App"
	Next        Framework = "Next.js"
	Nuxt        Framework = "Nuxt"
	ReactRouter Framework = "React Router"
	SvelteKit   Framework = "SvelteKit"
	Tanstack    Framework = "TanStack Start"
	Vite        Framework = "Vite"
	VueCLI      Framework = "Vue CLI"
	Webpack     Framework = "webpack"
	Plain       Framework = "plain HTML"
)

// signs lists the npm packages by which a framework is recognised, and its
// defaults. The first that fits counts: many frameworks use Vite too.
var signs = []struct {
	dependency string
	framework  Framework
	outDir     string
	export     string
}{
	{"@angular/core", Angular, "dist", ""},
	{"next", Next, "out", `output: "export" in next.config`},
	{"nuxt", Nuxt, ".output/public", "ssr: false in nuxt.config, and nuxt generate"},
	{"astro", Astro, "dist", ""},
	{"@sveltejs/kit", SvelteKit, "build", "@sveltejs/adapter-static"},
	{"@tanstack/react-start", Tanstack, "dist/client",
		`spa: { enabled: true, prerender: { outputPath: "/index" } } in tanstackStart()`},
	{"@react-router/dev", ReactRouter, "build/client", "ssr: false in react-router.config"},
	{"react-scripts", CreateReact, "build", ""},
	{"@vue/cli-service", VueCLI, "dist", ""},
	{"vite", Vite, "dist", ""},
	{"webpack", Webpack, "dist", ""},
}

// libraries has the parts of the browser client, and the npm packages that they
// are for. The first that fits counts.
var libraries = []struct{ dependency, part string }{
	{"@angular/core", "angular"}, {"nuxt", "vue"}, {"react", "react"}, {"svelte", "svelte"}, {"vue", "vue"},
}

// Detect finds out about the project in a directory. The error says what to do
// if it is none.
func Detect(dir string) (*Project, error) {
	project := &Project{SourceDir: "."}
	if info, err := os.Stat(filepath.Join(dir, "src")); err == nil && info.IsDir() {
		project.SourceDir = "src"
	}
	var manifest struct {
		Scripts         map[string]string `json:"scripts"`
		Dependencies    map[string]string `json:"dependencies"`
		DevDependencies map[string]string `json:"devDependencies"`
	}
	err := readJSON(filepath.Join(dir, "package.json"), &manifest)
	if errors.Is(err, fs.ErrNotExist) {
		return project, project.findPages(dir)
	}
	if err != nil {
		return nil, err
	}
	_, usesTypeScript := manifest.DevDependencies["typescript"]
	_, shipsTypeScript := manifest.Dependencies["typescript"]
	// In a monorepo, typescript is often a dependency of its root only.
	project.UsesTypeScript = usesTypeScript || shipsTypeScript || exists(dir, "tsconfig.json")
	project.DevScript = devScript(dir, manifest.Scripts)
	const client = "@cloakroom-bff/client"
	project.HasClient = manifest.Dependencies[client] != "" || manifest.DevDependencies[client] != ""
	for _, library := range libraries {
		if manifest.Dependencies[library.dependency] != "" || manifest.DevDependencies[library.dependency] != "" {
			project.Library = library.part
			break
		}
	}
	for _, sign := range signs {
		_, used := manifest.Dependencies[sign.dependency]
		_, usedToBuild := manifest.DevDependencies[sign.dependency]
		if !used && !usedToBuild {
			continue
		}
		project.Framework, project.OutDir, project.Export = sign.framework, sign.outDir, sign.export
		if sign.framework == Angular {
			if project.OutDir, err = angularOutDir(dir); err == nil && contains(dir, project.OutDir) {
				err = fmt.Errorf("%s: the outputPath %s contains the project, so its secrets would be published; "+
					"use a folder of its own, such as dist", filepath.Join(dir, "angular.json"), project.OutDir)
			}
		}
		return project, err
	}
	return nil, fmt.Errorf("%s names no framework that is known here; known are %s. In a monorepo, run this in the "+
		"folder of the app, or name that with --dir", filepath.Join(dir, "package.json"), knownFrameworks())
}

// pageDirs are usual names of a folder with pages, best first. It is public in
// a project that has none.
var pageDirs = []string{"public", "www", "dist", "build", "out", "site", "_site", "htdocs", "html", "static", "src"}

// partsOfProjects are files beside the sources of an app that is built with the
// package.json of a folder above, as in Nx. Its pages are not plain.
var partsOfProjects = []string{"project.json", "vite.config.ts", "vite.config.mts", "vite.config.js", "vite.config.mjs"}

// findPages finds the pages of a project without package.json.
func (p *Project) findPages(dir string) error {
	for _, name := range partsOfProjects {
		if exists(dir, name) {
			return fmt.Errorf("%s has %s, but no package.json: run this in the folder above that has it, and then set "+
				"frontend.dir to the output of this app's build", dir, name)
		}
	}
	p.Framework, p.OutDir = Plain, pageDirs[0]
	hasIndex := func(dir string) bool {
		info, err := os.Stat(filepath.Join(dir, "index.html"))
		return err == nil && info.Mode().IsRegular()
	}
	for _, name := range pageDirs {
		if hasIndex(filepath.Join(dir, name)) {
			p.OutDir = name
			return nil
		}
	}
	if p.MustMove = hasIndex(dir); !p.MustMove {
		return fmt.Errorf("%s has neither package.json nor index.html: run this in the folder of your app", dir)
	}
	return nil
}

func knownFrameworks() string {
	var names []string
	for _, sign := range signs {
		names = append(names, string(sign.framework))
	}
	return strings.Join(names, ", ")
}

// devScript returns the command that starts the development server.
func devScript(dir string, scripts map[string]string) string {
	for _, script := range []string{"dev", "start", "serve"} {
		if scripts[script] != "" {
			return packageManager(dir) + " run " + script
		}
	}
	return ""
}

// locks has the lock files of package managers. In a folder that has several,
// the first counts.
var locks = []struct{ file, manager string }{
	{"pnpm-lock.yaml", "pnpm"}, {"bun.lock", "bun"}, {"bun.lockb", "bun"}, {"yarn.lock", "yarn"},
	{"package-lock.json", "npm"},
}

// packageManager returns the package manager of a project. In a monorepo, only
// the root has a lock file.
func packageManager(dir string) string {
	dir, err := filepath.Abs(dir)
	for err == nil {
		for _, lock := range locks {
			if exists(dir, lock.file) {
				return lock.manager
			}
		}
		above := filepath.Dir(dir)
		if above == dir || exists(dir, ".git") { // what is above is another project
			break
		}
		dir = above
	}
	return "npm"
}

// exists reports whether a directory has something of that name.
func exists(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}

// angularOutDir returns where the Angular CLI writes the browser's files. The
// application builder has a folder for them.
func angularOutDir(dir string) (string, error) {
	var workspace struct {
		Projects map[string]struct {
			Architect map[string]struct {
				Builder string
				Options struct {
					OutputPath json.RawMessage
				}
			}
		}
	}
	err := readJSON(filepath.Join(dir, "angular.json"), &workspace)
	if errors.Is(err, fs.ErrNotExist) {
		return "dist", nil
	}
	if err != nil {
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(workspace.Projects)) {
		build, exists := workspace.Projects[name].Architect["build"]
		if !exists {
			continue
		}
		out := struct{ Base, Browser string }{path.Join("dist", name), "browser"}
		if given := build.Options.OutputPath; len(given) > 0 {
			if json.Unmarshal(given, &out.Base) != nil && json.Unmarshal(given, &out) != nil {
				return "", fmt.Errorf("%s: outputPath of %q is neither a string nor an object",
					filepath.Join(dir, "angular.json"), name)
			}
		}
		if strings.HasSuffix(build.Builder, ":browser") {
			return path.Clean(out.Base), nil // the older builder has no such folder
		}
		return path.Join(out.Base, out.Browser), nil
	}
	return "dist", nil
}

// contains reports whether the output directory of a project contains the
// project itself.
func contains(project, outDir string) bool {
	project, err := filepath.Abs(project)
	if err != nil {
		return true
	}
	if !filepath.IsAbs(outDir) {
		outDir = filepath.Join(project, outDir)
	}
	below, err := filepath.Rel(outDir, project)
	return err == nil && filepath.IsLocal(below)
}

// readJSON reads a small JSON file into v.
func readJSON(name string, v any) error {
	b, err := smallfile.Read(name)
	if err != nil {
		return err
	}
	b = bytes.TrimPrefix(b, []byte("\ufeff")) // npm accepts a byte order mark, too
	err = json.Unmarshal(b, v)
	if mistyped, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s is not valid JSON for this file: %s cannot be of the type %s", name,
			cmp.Or(mistyped.Field, "the whole file"), mistyped.Value)
	}
	if err != nil {
		return fmt.Errorf("%s is not valid JSON: %w", name, err)
	}
	return nil
}
