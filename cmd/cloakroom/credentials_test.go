package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
	"github.com/cloakroom-bff/cloakroom/internal/redistest"
)

// A reload applies a changed user or password of Redis, in store.url or in
// another file. No session ends.
func TestReloadAppliesRedisCredentials(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	acl := func(user string, rules ...string) {
		t.Helper()
		if got := server.Do(append([]string{"ACL", "SETUSER", user}, rules...)...); got != "+OK" {
			t.Fatalf("ACL SETUSER %s %v: %s", user, rules, got)
		}
	}
	acl("cloakroom", "on", ">one", "~*", "&*", "+@all")
	acl("renamed", "on", ">four", "~*", "&*", "+@all")
	store := func(login, more string) string {
		return fmt.Sprintf("store: {url: 'redis://%s@%s'%s}\nsession: {keys: [%s]}\n",
			login, server.Addr(), more, goodKey)
	}
	r := startReloadable(t, store("cloakroom:one", ""))
	browser := bfftest.NewBrowser(t, r.app)
	signIn(t, browser, "")
	r.write("two", "two\n")
	r.write("three", "three\n")
	file := func(name string) string { return ", password_file: '" + filepath.Join(r.dir, name) + "'" }
	for _, change := range []struct {
		name, store, user string
		rules             []string // before the reload
		after             []string // after it
	}{
		{"password in store.url", store("cloakroom:two", ""), "cloakroom", []string{">two"}, []string{"<one"}},
		{"store.password_file", store("cloakroom", file("two")), "cloakroom", []string{">three"}, nil},
		{"another store.password_file", store("cloakroom", file("three")), "cloakroom", nil, []string{"<two"}},
		{"user in store.url", store("renamed:four", ""), "renamed", nil, nil},
	} {
		acl("cloakroom", change.rules...)
		r.write("cloakroom.yaml", r.base+change.store)
		if _, errs, err := r.command("reload"); err != nil {
			t.Fatalf("%s: reload: %v\n%s", change.name, err, errs)
		}
		acl("cloakroom", change.after...)
		server.Do("CLIENT", "KILL", "USER", "cloakroom")
		server.Do("CLIENT", "KILL", "USER", "renamed")
		status := func() int { return browser.Fetch("GET", "/bff/session").StatusCode }
		for deadline := time.Now().Add(20 * time.Second); status() != 200; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: the session gets %d, want 200", change.name, status())
			}
		}
		if list := server.Do("CLIENT", "LIST"); !strings.Contains(list, "user="+change.user+" ") {
			t.Errorf("%s: no connection of the user %s:\n%s", change.name, change.user, list)
		}
	}
	for name, test := range map[string]struct{ store, want string }{
		"another host":     {strings.Replace(store("renamed:four", ""), "127.0.0.1", "localhost", 1), "store.url"},
		"another prefix":   {store("renamed:four", ", prefix: 'other:'"), "store.prefix"},
		"a missing file":   {store("renamed", ", password_file: /nothing"), "store.password_file"},
		"another database": {strings.Replace(store("renamed:four", ""), "'}", "/3'}", 1), "store.url"},
	} {
		r.write("cloakroom.yaml", r.base+test.store)
		if _, errs, err := r.command("reload"); err == nil || !strings.Contains(errs, test.want) {
			t.Errorf("%s: got %v, want an error that names %s:\n%s", name, err, test.want, errs)
		} else if strings.Contains(errs, "four") {
			t.Errorf("%s: the error shows the password:\n%s", name, errs)
		}
	}
}
