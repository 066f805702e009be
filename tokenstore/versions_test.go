package tokenstore_test

import (
	"os"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

// On every version of Redis, the documented permissions are sufficient for the
// contract and for Watch, and allow nothing else.
func TestDocumentedACL(t *testing.T) {
	t.Parallel()
	permissions := documentedPermissions(t)
	for _, program := range redistest.Programs {
		t.Run(program.Name, func(t *testing.T) {
			t.Parallel()
			server := program.Start(t)
			t.Log(strings.Split(server.Do("INFO", "server"), "\r\n")[2])
			setUser(t, server, permissions...)
			store := openRedis(t, server.URLAs("cloakroom", "pw"))
			storetest.Run(t, store)
			w := watch(t, store)
			eventually(t, "caches are valid", w.valid)
			wantAnnounced(t, store, w, "with few permissions")
			if list := server.Do("CLIENT", "LIST"); !strings.Contains(list, " name=cloakroom-") {
				t.Errorf("no connection has a name:\n%s", list)
			}

			for _, command := range [][]string{
				{"GET", "other:key"}, {"KEYS", "*"}, {"CONFIG", "GET", "*"}, {"ACL", "LIST"},
				{"FLUSHALL"}, {"SHUTDOWN"}, {"PUBLISH", "other", "x"}, {"SUBSCRIBE", "other"},
			} {
				if got := server.DoAs("cloakroom", "pw", command...); !strings.HasPrefix(got, "-NOPERM") {
					t.Errorf("%v: got %q, want NOPERM", command, got)
				}
			}
		})
	}
}

// documentedPermissions returns the rules of the ACL in the documentation.
func documentedPermissions(t *testing.T) []string {
	t.Helper()
	docs, err := os.ReadFile("../docs/sessions.md")
	if err != nil {
		t.Fatal(err)
	}
	_, permissions, ok := strings.Cut(string(docs), "For a user with an ACL")
	_, permissions, _ = strings.Cut(permissions, "```") // a block of code
	permissions, _, _ = strings.Cut(permissions, "```")
	if !ok || !strings.Contains(permissions, "PREFIX") {
		t.Fatal("found no permissions in docs/sessions.md")
	}
	return strings.Fields(strings.ReplaceAll(permissions, "PREFIX", "cloakroom:"))
}

// setUser gives the user cloakroom with the password pw these permissions.
func setUser(t *testing.T, server *redistest.Server, permissions ...string) {
	t.Helper()
	command := append([]string{"ACL", "SETUSER", "cloakroom", "reset", "on", ">pw"}, permissions...)
	if got := server.Do(command...); got != "+OK" {
		t.Fatalf("%v: %s", command, got)
	}
}
