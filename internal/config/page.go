package config

import (
	"html/template"
	"io"
	"os"
)

// maxPageFile bounds server.page_file, in bytes.
const maxPageFile = 1 << 20

// page reads server.page_file. It returns nil if there is none, or after a
// problem.
func (c *Config) page(problems *Errors) *template.Template {
	name := c.Server.PageFile
	if name == "" {
		return nil
	}
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		problems.add("server.page_file", "%q is not a regular file", name)
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		problems.add("server.page_file", "%w", err)
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPageFile+1))
	switch {
	case err != nil:
		problems.add("server.page_file", "%w", err)
		return nil
	case len(text) > maxPageFile:
		problems.add("server.page_file", "%q has more than 1 MiB", name)
		return nil
	}
	parsed, err := template.New("page").Option("missingkey=error").Parse(string(text))
	if err != nil {
		problems.add("server.page_file", "%q is not a template: %w", name, err)
		return nil
	}
	return parsed
}
