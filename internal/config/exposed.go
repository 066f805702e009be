package config

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// checkExposed reports files of the configuration that are in frontend.dir, or
// would be there: the configuration, secrets, keys, certificates, the store and
// the audit log. Every client can download the files there.
func (c *Config) checkExposed(problems *Errors) {
	dir, err := os.Stat(c.Frontend.Dir)
	if c.Frontend.Dir == "" || err != nil {
		return // none, or reported elsewhere
	}
	files := c.privateFiles()
	var exposed []string
	for _, key := range slices.Sorted(maps.Keys(files)) {
		switch name := files[key]; {
		case !isBelow(name, dir):
		case key == "":
			exposed = append(exposed, name)
		default:
			exposed = append(exposed, name+" ("+key+")")
		}
	}
	if len(exposed) > 0 {
		problems.addWithFix("frontend.dir", "use a folder that has nothing but the app's build",
			"%q contains files that must not be published: %s", c.Frontend.Dir, strings.Join(exposed, ", "))
	}
}

// privateFiles returns the names of the files that only the broker may read, by
// the keys that name them. The key of the configuration is empty.
func (c *Config) privateFiles() map[string]string {
	files := maps.Clone(c.files)
	if files == nil {
		files = make(map[string]string)
	}
	delete(files, "server.page_file") // users see the page
	if dir, ok := c.Store.FileDir(); ok {
		files["store.url"] = dir
	}
	if c.Log.Audit != "" && c.Log.Audit != "stdout" {
		files["log.audit"] = c.Log.Audit
	}
	return files
}

// isBelow reports whether a file, which need not exist, or the file that it is
// a link to is in a directory, at any depth.
func isBelow(name string, dir os.FileInfo) bool {
	name, err := filepath.Abs(name)
	if err != nil {
		return true
	}
	parent := resolve(filepath.Dir(name))
	return hasAncestor(filepath.Join(parent, filepath.Base(name)), dir) || hasAncestor(resolve(name), dir)
}

// resolve returns a path without links, as far as it exists.
func resolve(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	parent := filepath.Dir(path)
	if parent == path {
		return path
	}
	return filepath.Join(resolve(parent), filepath.Base(path))
}

// hasAncestor reports whether a path without links is in a directory. It
// compares the directories themselves: names can differ in case.
func hasAncestor(path string, dir os.FileInfo) bool {
	for {
		parent := filepath.Dir(path)
		if parent == path {
			return false
		}
		if info, err := os.Stat(parent); err == nil && os.SameFile(info, dir) {
			return true
		}
		path = parent
	}
}
