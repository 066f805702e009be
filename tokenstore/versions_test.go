package tokenstore_test

import (
	"os"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

// On every version of Redis, the documented rights are sufficient for the
// contract and for Watch, and no more than that.
func TestDocumentedACL(t *testing.T) {
	t.Parallel()
	docs, err := os.ReadFile("../docs/sessions.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rights, ok := strings.Cut(string(docs), "for a user with an ACL: `")
	rights, _, _ = strings.Cut(rights, "`")
	if !ok || !strings.Contains(rights, "PREFIX") {
		t.Fatal("the documentation names no rights")
	}
	for _, program := range redistest.Programs {
		t.Run(program.Name, func(t *testing.T) {
			t.Parallel()
			server := program.Start(t)
			t.Log(strings.Split(server.Do("INFO", "server"), "\r\n")[2])
			if got := server.Do(append([]string{"ACL", "SETUSER", "cloakroom", "on", ">pw"},
				strings.Fields(strings.ReplaceAll(rights, "PREFIX", "cloakroom:"))...)...); got != "+OK" {
				t.Fatalf("ACL SETUSER %s: %s", rights, got)
			}
			store := openRedis(t, strings.Replace(server.URL(), "://", "://cloakroom:pw@", 1))
			storetest.Run(t, store)
			w := watch(t, store)
			eventually(t, "current", w.current)
			wantNews(t, store, w, "with few rights")

			for _, command := range [][]string{
				{"GET", "other:key"}, {"CONFIG", "GET", "*"}, {"FLUSHALL"}, {"ACL",
					"LIST"}, {"SHUTDOWN"}, {"PUBLISH", "other", "x"}, {"SUBSCRIBE", "other"}, {"KEYS", "*"},
			} {
				if got := server.DoAs("cloakroom", "pw", command...); !strings.HasPrefix(got, "-NOPERM") {
					t.Errorf("%v: got %q, want that it is not allowed", command, got)
				}
			}
		})
	}
}
