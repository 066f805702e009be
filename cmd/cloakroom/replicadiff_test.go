package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/replicas"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// strayKey is a session key that only one replica has.
const strayKey = "kGX0Jw8nGO0wT5XAJ3ZbQyXh9qkqM1T0YyN4uQm3zQo="

// wrongSecret is a client secret that could be guessed.
const wrongSecret = "wrong secret"

// noRoutes are the routes of replicas that are not started together: otherwise
// each call of startReplicas gives them other upstreams.
const noRoutes = "[]"

const (
	differenceFound = "difference between replicas found"
	differenceEnded = "difference between replicas ended"
)

// differenceLogs returns how often r has logged that the key of another replica
// differs, or does not differ any more.
func (r *replica) differenceLogs(msg, level string, other *replica, key string) (n int) {
	for line := range strings.Lines(r.stderr.String()) {
		var fields struct{ Level, Msg, Replica, Key string }
		if json.Unmarshal([]byte(line), &fields) != nil || !strings.HasPrefix(fields.Msg, msg) {
			continue
		}
		if fields.Level == level && fields.Key == key && fields.Replica == other.name {
			n++
		}
	}
	return n
}

// waitDifference waits until a and b have logged each other's difference.
func waitDifference(t *testing.T, msg, level, key string, a, b *replica) {
	t.Helper()
	for _, pair := range [][2]*replica{{a, b}, {b, a}} {
		eventually(t, time.Minute, fmt.Sprintf("replica %s logs %q for %s of %s", pair[0].addr, msg, key, pair[1].addr),
			func() bool { return pair[0].differenceLogs(msg, level, pair[1], key) > 0 })
	}
}

// list returns the replicas as r lists them.
func (r *replica) list(t *testing.T) (all []replicas.Replica, text string) {
	t.Helper()
	resp, err := http.Get("http://" + r.admin + "/admin/replicas")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 {
		t.Fatalf("/admin/replicas: got %d, want 200\n%s", resp.StatusCode, body)
	}
	if err := json.Unmarshal(body, &all); err != nil {
		t.Fatalf("/admin/replicas: %v\n%s", err, body)
	}
	return all, string(body)
}

// waitList waits until r lists n replicas, and sets its own name.
func (r *replica) waitList(t *testing.T, n int) (all []replicas.Replica) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("replica %s lists %d replicas", r.addr, n), func() bool {
		all, _ = r.list(t)
		return len(all) == n
	})
	if !all[0].Self {
		t.Errorf("the first replica: got self false, want true")
	}
	r.name = all[0].Replica
	return all
}

// wantNoSecrets checks that neither Redis nor the list of replicas has a
// session key or a client secret, nor do the logs.
func (f *fleet) wantNoSecrets(t *testing.T, redis *redistest.Server) {
	t.Helper()
	secrets := []string{goodKey, strayKey, wrongSecret, f.provider.Client.Secret}
	for _, secret := range slices.Clone(secrets) {
		secrets = append(secrets, strings.TrimRight(secret, "="))
	}
	texts := make(map[string]string)
	for _, r := range f.replicas {
		if r.alive() {
			_, texts["the list of replica "+r.addr] = r.list(t)
		}
		texts["the log of replica "+r.addr] = r.stderr.String()
	}
	records := 0
	for _, key := range strings.Fields(redis.Do("KEYS", "*")) {
		if !strings.Contains(key, ":") || strings.HasPrefix(key, "$") || strings.HasPrefix(key, "*") {
			continue
		}
		switch kind := redis.Do("TYPE", key); kind {
		case "+string":
			texts["the value of "+key] = redis.Do("GET", key)
			records++
		case "+zset":
			texts["the members of "+key] = redis.Do("ZRANGE", key, "0", "-1")
		case "+none": // it has expired
		default:
			t.Errorf("key %s in Redis: got type %s, want +string or +zset", key, kind)
		}
		if got := redis.Do("TTL", key); got == ":-1" {
			t.Errorf("key %s in Redis has no time to live", key)
		}
	}
	if records == 0 {
		t.Error("found no records in Redis")
	}
	for name, text := range texts {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s contains a secret:\n%.500s", name, text)
			}
		}
	}
}

func (r *replica) alive() bool {
	select {
	case <-r.ended:
		return false
	default:
		return true
	}
}

func TestReplicasLogTheirDifferences(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	for key, env := range map[string]map[string]string{
		"session.keys":      {"SESSION_KEYS": strayKey},
		"oidc.client_id":    {"OIDC_CLIENT_ID": "another"},
		"server.public_url": {"SERVER_PUBLIC_URL": "http://localhost:1"},
		"configuration":     {"SESSION_IDLE_TIMEOUT": "17m", "OIDC_CLIENT_SECRET": wrongSecret},
	} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, nil)
			prefix := "test-" + key + ":"
			f.startReplicas(map[string]string{"STORE_PREFIX": prefix, "ROUTES": noRoutes}, redis.URL())
			env["STORE_PREFIX"], env["ROUTES"] = prefix, noRoutes
			f.startReplicas(env, redis.URL())
			a, b := f.replicas[0], f.replicas[1]
			a.waitList(t, 2)
			b.waitList(t, 2)
			waitDifference(t, differenceFound, "WARN", key, a, b)
			all, _ := a.list(t)
			if got := all[1].Differs; !slices.Equal(got, []string{key}) {
				t.Errorf("differs: got %q, want %q alone", got, key)
			}
			sameHash := all[0].ConfigurationHash == all[1].ConfigurationHash
			if want := key != "configuration" && key != "session.keys"; sameHash != want {
				t.Errorf("the same configuration hash: got %v, want %v", sameHash, want)
			}
			f.wantNoSecrets(t, redis)
			b.stop(t)
			eventually(t, time.Minute, "the difference has ended", func() bool {
				return a.differenceLogs(differenceEnded, "INFO", b, key) == 1
			})
			if got := a.differenceLogs(differenceFound, "WARN", b, key); got != 1 {
				t.Errorf("warnings: got %d, want 1", got)
			}
			a.waitList(t, 1)
		})
	}
}

// Three replicas use Redis with the permissions of docs/sessions.md. A reload
// mends the one that differs.
func TestReloadEndsTheDifference(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	redis := redistest.Start(t)
	docs, err := os.ReadFile("../../docs/sessions.md")
	if err != nil {
		t.Fatal(err)
	}
	_, permissions, _ := strings.Cut(string(docs), "For a user with an ACL")
	permissions = strings.Split(permissions, "```")[1]
	if got := redis.Do(append([]string{"ACL", "SETUSER", "cloakroom", "on", ">pw"},
		strings.Fields(strings.ReplaceAll(permissions, "PREFIX", "cloakroom:"))...)...); got != "+OK" {
		t.Fatalf("ACL SETUSER: got %s, want +OK", got)
	}
	url := strings.Replace(redis.URL(), "://", "://cloakroom:pw@", 1)

	f := newFleet(t, nil)
	f.startReplicas(map[string]string{"ROUTES": noRoutes}, url, url)
	keys, secret := writeFile(t, "keys", strayKey), writeFile(t, "secret", wrongSecret)
	f.startReplicas(map[string]string{
		"SESSION_KEYS": "", "SESSION_KEYS_FILE": keys,
		"OIDC_CLIENT_SECRET": "", "OIDC_CLIENT_SECRET_FILE": secret,
		"ROUTES": noRoutes,
	}, url)
	a, b, c := f.replicas[0], f.replicas[1], f.replicas[2]
	for _, r := range f.replicas {
		r.waitList(t, 3)
	}
	waitDifference(t, differenceFound, "WARN", "session.keys", a, c)
	waitDifference(t, differenceFound, "WARN", "session.keys", b, c)
	f.wantNoSecrets(t, redis)

	overwrite(t, keys, strayKey+"\n"+goodKey)
	waitDifference(t, differenceFound, "WARN", "configuration", a, c)
	f.wantNoSecrets(t, redis)
	if all, _ := c.list(t); !slices.Equal(all[1].Settings, []string{"oidc.client_secret"}) {
		t.Errorf("settings that differ: got %q, want oidc.client_secret alone", all[1].Settings)
	}

	overwrite(t, keys, goodKey)
	overwrite(t, secret, f.provider.Client.Secret)
	for _, key := range []string{"session.keys", "configuration"} {
		waitDifference(t, differenceEnded, "INFO", key, a, c)
		waitDifference(t, differenceEnded, "INFO", key, b, c)
	}
	for _, r := range f.replicas {
		all, _ := r.list(t)
		for _, other := range all {
			if len(other.Differs) > 0 {
				t.Errorf("replica %s in the list of %s: differs in %q, want none", other.Replica, r.addr, other.Differs)
			}
		}
	}
	for _, key := range []string{"session.keys", "oidc.client_id", "configuration", "version"} {
		if got := a.differenceLogs(differenceFound, "WARN", b, key); got != 0 {
			t.Errorf("warnings for %s between equal replicas: got %d, want 0", key, got)
		}
	}
	f.wantNoSecrets(t, redis)
}

func TestReplicasOfUnsharedStore(t *testing.T) {
	t.Parallel()
	f := startFleet(t, nil, "memory:")
	all := f.replicas[0].waitList(t, 1)
	if got := all[0].ClientID; got != f.provider.Client.ID {
		t.Errorf("client_id: got %q, want %q", got, f.provider.Client.ID)
	}
	if got := all[0].Origin; got != f.url {
		t.Errorf("origin: got %q, want %q", got, f.url)
	}
	if got := len(all[0].KeyFingerprints); got != 1 {
		t.Errorf("key fingerprints: got %d, want 1", got)
	}
	if all[0].StartedAt.IsZero() {
		t.Error("started_at is missing")
	}
}

// While Redis is down, the replicas serve. The outage is logged once, not for
// the comparison too.
func TestReplicasInAnOutageOfRedis(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	redis := redistest.Start(t)
	f := startFleet(t, nil, redis.URL(), redis.URL())
	a := f.replicas[0]
	a.waitList(t, 2)
	redis.Kill()
	logged := func(message string) int { return strings.Count(a.stderr.String(), `"msg":"`+message) }
	eventually(t, time.Minute, "the outage is logged", func() bool { return logged("store unavailable") > 0 })
	time.Sleep(7 * time.Second) // more than a round
	redis.Start()
	eventually(t, time.Minute, "the end is logged", func() bool { return logged("store recovered") > 0 })
	if got := logged("store unavailable"); got != 1 {
		t.Errorf("lines about the store: got %d, want 1", got)
	}
	if got := logged("replicas not compared"); got != 0 {
		t.Errorf("lines about the comparison: got %d, want none", got)
	}
	a.waitList(t, 2)
}

func TestReplicasNeedTheAdminToken(t *testing.T) {
	t.Parallel()
	f := startFleet(t, map[string]string{"SERVER_ADMIN_TOKEN": "the token of administrators"}, "memory:")
	for token, want := range map[string]int{"": 401, "wrong": 401, "the token of administrators": 200} {
		req, err := http.NewRequest("GET", "http://"+f.replicas[0].admin+"/admin/replicas", nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("token %q: got %d, want %d", token, resp.StatusCode, want)
		}
	}
}
