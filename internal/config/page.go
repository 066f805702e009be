package config

import (
	"html/template"

	"github.com/cloakroom-bff/cloakroom/internal/smallfile"
)

// page reads server.page_file. It returns nil if there is none, or after a
// problem.
func (c *Config) page(problems *Errors) *template.Template {
	name := c.Server.PageFile
	if name == "" {
		return nil
	}
	text, err := smallfile.Read(name)
	if err != nil {
		problems.add("server.page_file", "%w", err)
		return nil
	}
	parsed, err := template.New("page").Option("missingkey=error").Parse(string(text))
	if err != nil {
		problems.add("server.page_file", "%q is not a template: %w", name, err)
		return nil
	}
	return parsed
}
