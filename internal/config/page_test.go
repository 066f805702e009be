package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPageFileIsAFileWithATemplate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for name, want := range map[string]string{
		"":                                      "",
		write("good", "<h1>{{.Title}}</h1>"):    "",
		filepath.Join(dir, "missing"):           "no such file",
		dir:                                     "is not a regular file",
		write("open", "<h1>{{.Title"):           "is not a template",
		write("unknown function", "{{secret}}"): "is not a template",
		write("large", strings.Repeat(" ", 1<<20+1)): "more than 1 MiB",
	} {
		c := new(Config)
		c.Server.PageFile = name
		var problems Errors
		parsed := c.page(&problems)
		got := strings.Join(problems.Lines(), "\n")
		if (want == "") != (len(problems) == 0) || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		if (parsed != nil) != (want == "" && name != "") {
			t.Errorf("%s: got the template %v", name, parsed)
		}
	}
}
