package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/web"
)

// clientParts are what clientCommand writes on demand, besides client.js.
var clientParts = []struct{ name, use string }{
	{"react", "hooks and components for React"},
	{"vue", "a plugin and a composable for Vue"},
	{"svelte", "a store for Svelte"},
	{"angular", "providers, interceptor and guard for Angular"},
	{"tanstack", "defaults for TanStack Query, a guard for TanStack Router"},
	{"notice", "a notice after the end of the session"},
	{"vite", "a plugin for Vite"},
	{"testing", "a mock client, and a sign-in for Playwright"},
}

func clientCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "client DIR",
		Short: "Write the browser client into an app that bundles it",
		Long: `Write the browser client into DIR: client.js with its types, and the files that
are asked for. An app that uses npm can install @cloakroom-bff/client instead.
Files that differ are kept, and then nothing is written, unless --force is
given.`,
		Example: "  cloakroom client --react src/cloakroom",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return usageError{fmt.Errorf("%s takes one directory; see %[1]s --help", c.CommandPath())}
			}
			return nil
		},
	}
	wanted := make([]bool, len(clientParts))
	for i, part := range clientParts {
		c.Flags().BoolVar(&wanted[i], part.name, false, "also write "+part.use)
	}
	c.Flags().BoolVar(&force, "force", false, "overwrite files that differ")
	c.RunE = func(c *cobra.Command, args []string) error {
		names := []string{"client.js", "client.d.ts"}
		for i, part := range clientParts {
			if wanted[i] {
				names = append(names, part.name+".js", part.name+".d.ts")
			}
		}
		written, err := writeClient(args[0], withImports(names), force)
		for _, name := range written {
			fmt.Fprintln(c.OutOrStdout(), "wrote", filepath.Join(args[0], name))
		}
		if err != nil {
			return err
		}
		if len(written) == 0 {
			fmt.Fprintln(c.OutOrStdout(), "all files are up to date")
		}
		_, err = fmt.Fprint(c.OutOrStdout(), importLines(args[0], names))
		return err
	}
	return c
}

// withImports adds the files that others import.
func withImports(names []string) []string {
	guarded := slices.ContainsFunc(names, func(name string) bool {
		return name == "react.js" || name == "angular.js" || name == "tanstack.js"
	})
	if guarded && !slices.Contains(names, "notice.js") {
		return slices.Concat(names, []string{"notice.js", "notice.d.ts"})
	}
	return names
}

// writeClient writes the named files of the browser client into dir and returns
// those that were missing or different. Without force, it writes nothing if a
// file is different.
func writeClient(dir string, names []string, force bool) (written []string, err error) {
	contents := make(map[string][]byte)
	var different []string
	for _, name := range names {
		content, err := fs.ReadFile(web.ClientFiles(), name)
		if err != nil {
			return nil, err
		}
		same, err := hasContent(filepath.Join(dir, name), content)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			contents[name] = content
		case err != nil:
			return nil, err
		case !same:
			contents[name] = content
			different = append(different, filepath.Join(dir, name))
		}
	}
	if len(different) > 0 && !force {
		return nil, fmt.Errorf("nothing was written, because these files differ: %s (--force overwrites them)",
			strings.Join(different, ", "))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for _, name := range names {
		content, ok := contents[name]
		if !ok {
			continue
		}
		if err := writeWhole(filepath.Join(dir, name), content); err != nil {
			return written, err
		}
		written = append(written, name)
	}
	return written, nil
}

// writeWhole writes a file. If the disk is full, it leaves no part of it, which
// would be a file that differs the next time.
func writeWhole(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

// hasContent reports whether a regular file has a content. It is an error if it
// is no such file.
func hasContent(name string, content []byte) (bool, error) {
	info, err := os.Lstat(name)
	switch {
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("%s is not a regular file; nothing was written", name)
	case info.Size() != int64(len(content)):
		return false, nil
	}
	existing, err := os.ReadFile(name)
	return bytes.Equal(existing, content), err
}

// importLines returns the imports of the files for a module beside dir.
func importLines(dir string, names []string) string {
	from := "."
	if abs, err := filepath.Abs(dir); err == nil {
		from = "./" + filepath.Base(abs)
	}
	exports := map[string]string{
		"client": "createClient", "react": "CloakroomProvider, RequireSession, useSession",
		"vue":    "cloakroom, useSession",
		"svelte": "sessionStore", "angular": "provideCloakroom, cloakroomInterceptor",
		"tanstack": "queryDefaults, followSession", "notice": "signInNotice",
		"vite": "cloakroom", "testing": "mockClient, signIn",
	}
	var b strings.Builder
	fmt.Fprintf(&b, "In a module beside %s:\n", dir)
	for _, name := range names {
		if part, ok := strings.CutSuffix(name, ".js"); ok {
			fmt.Fprintf(&b, "  import { %s } from %q;\n", exports[part], from+"/"+name)
		}
	}
	return b.String()
}
