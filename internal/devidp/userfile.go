package devidp

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cloakroom-bff/cloakroom/internal/smallfile"
)

// UserFile is what a file with users says.
type UserFile struct {
	Users     []User
	ACRValues []string // see Config.ACRValues
}

const maxUsers = 1000

// ReadUserFile reads a YAML file with users:
//
//	acr_values: [silver, gold]  # optional; the weakest first
//	users:
//	  - sub: alice              # required
//	    name: Alice Liddell
//	    email: alice@example.com
//	    roles: [admin]          # short for claims: {roles: [admin]}
//	    acr: gold
//	    claims: {department: sales}
//
// The error joins every mistake, each with file and line.
func ReadUserFile(file string) (*UserFile, error) {
	text, err := smallfile.Read(file)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	r := userReader{file: file}
	if len(doc.Content) == 0 {
		r.fail(&yaml.Node{Line: 1}, "there are no users; list them under users:")
	} else {
		r.readFile(doc.Content[0])
	}
	return &r.read, errors.Join(r.mistakes...)
}

// userReader reads a file with users and collects its mistakes.
type userReader struct {
	file     string
	read     UserFile
	mistakes []error
}

func (r *userReader) fail(n *yaml.Node, format string, args ...any) {
	r.mistakes = append(r.mistakes, fmt.Errorf("%s:%d: %w", r.file, n.Line, fmt.Errorf(format, args...)))
}

func (r *userReader) readFile(root *yaml.Node) {
	var users *yaml.Node
	r.mapping(root, "the file", map[string]func(*yaml.Node){
		"acr_values": func(n *yaml.Node) { r.read.ACRValues = r.texts(n, "acr_values") },
		"users":      func(n *yaml.Node) { users = n },
	})
	switch {
	case users == nil:
		r.fail(root, "there are no users; list them under users:")
	case users.Kind != yaml.SequenceNode || len(users.Content) == 0:
		r.fail(users, "users is not a list of users, such as - sub: alice")
	case len(users.Content) > maxUsers:
		r.fail(users, "there are %d users; the maximum is %d", len(users.Content), maxUsers)
	default:
		for _, n := range users.Content {
			r.readUser(n)
		}
	}
}

func (r *userReader) readUser(n *yaml.Node) {
	var u User
	var roles []string
	before := len(r.mistakes)
	r.mapping(n, "a user", map[string]func(*yaml.Node){
		"sub":    func(n *yaml.Node) { u.Sub = r.text(n, "sub") },
		"name":   func(n *yaml.Node) { u.Name = r.text(n, "name") },
		"email":  func(n *yaml.Node) { u.Email = r.text(n, "email") },
		"acr":    func(n *yaml.Node) { u.ACR = r.text(n, "acr") },
		"roles":  func(n *yaml.Node) { roles = r.texts(n, "roles") },
		"claims": func(n *yaml.Node) { u.Claims = r.claims(n) },
	})
	if len(r.mistakes) > before {
		return
	}
	if roles != nil {
		if u.Claims == nil {
			u.Claims = make(map[string]any)
		}
		list := make([]any, len(roles)) // as from JSON
		for i, role := range roles {
			list[i] = role
		}
		u.Claims["roles"] = list
	}
	switch {
	case u.Sub == "" || len(u.Sub) > longestName:
		r.fail(n, "sub is missing or too long; each user needs one, such as sub: alice")
	case slices.ContainsFunc(r.read.Users, func(other User) bool { return other.Sub == u.Sub }):
		r.fail(n, "%q is the sub of another user too", u.Sub)
	default:
		if err := u.check(acrValuesOrDefault(r.read.ACRValues)); err != nil {
			r.fail(n, "%s: %w", u.Sub, err)
		}
		r.read.Users = append(r.read.Users, u)
	}
}

// acrValuesOrDefault returns acrValues, or the default if there are none.
func acrValuesOrDefault(acrValues []string) []string {
	if len(acrValues) == 0 {
		return defaultACRValues
	}
	return acrValues
}

// mapping calls a function for each key of a mapping.
func (r *userReader) mapping(n *yaml.Node, what string, keys map[string]func(*yaml.Node)) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n, "%s is not a mapping of keys to values", what)
		return
	}
	var known []string
	for key := range keys {
		known = append(known, key)
	}
	slices.Sort(known)
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		read := keys[key.Value]
		switch {
		case read == nil:
			r.fail(key, "unknown key %q; the keys of %s are %s", key.Value, what, strings.Join(known, ", "))
		case seen[key.Value]:
			r.fail(key, "%s occurs twice", key.Value)
		default:
			read(n.Content[i+1])
		}
		seen[key.Value] = true
	}
}

func (r *userReader) text(n *yaml.Node, key string) string {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		r.fail(n, "%s is not a text", key)
		return ""
	}
	return n.Value
}

func (r *userReader) texts(n *yaml.Node, key string) []string {
	if n.Kind != yaml.SequenceNode {
		r.fail(n, "%s is not a list such as [admin, editor]", key)
		return nil
	}
	all := make([]string, 0, len(n.Content))
	for _, item := range n.Content {
		all = append(all, r.text(item, key))
	}
	return all
}

// claims returns a mapping as encoding/json would decode it.
func (r *userReader) claims(n *yaml.Node) map[string]any {
	if n.Kind != yaml.MappingNode {
		r.fail(n, "claims is not a mapping of names to values")
		return nil
	}
	var value any
	if err := n.Decode(&value); err != nil {
		r.fail(n, "claims: %w", err)
		return nil
	}
	text, err := json.Marshal(value)
	if err != nil {
		r.fail(n, "claims cannot be written as JSON, so some name is not a text")
		return nil
	}
	var claims map[string]any
	if err := json.Unmarshal(text, &claims); err != nil {
		r.fail(n, "claims: %w", err)
	}
	return claims
}
