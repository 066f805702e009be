package tokenstore_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
	"github.com/cloakroom-bff/cloakroom/tokenstore/storetest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestMemory(t *testing.T) {
	t.Parallel()
	storetest.Run(t, new(tokenstore.Memory))
}

func TestRedis(t *testing.T) {
	t.Parallel()
	storetest.Run(t, openRedis(t, redistest.Start(t).URL()))
}

func TestRedisKeysHavePrefixAndTTL(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	store := openRedis(t, server.URL())
	if _, err := store.Create(t.Context(), "session:a", []byte("1"), time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Replace(t.Context(), "session:a", []byte("1"), []byte("2")); err != nil {
		t.Fatal(err)
	}
	if got, want := server.Do("KEYS", "*"), "*1\r\n$19\r\ncloakroom:session:a"; got != want {
		t.Errorf("keys: got %q, want %q", got, want)
	}
	if got := server.Do("TTL", "cloakroom:session:a"); got != ":60" && !strings.HasPrefix(got, ":5") {
		t.Errorf("time to live after Replace: got %s, want :60, or :5x after a while", got)
	}
	server.Do("SET", "cloakroom:session:b", "without a time to live")
	if _, _, found, err := store.Get(t.Context(), "session:b"); found || err != nil {
		t.Errorf("a key without a time to live: got %v, %v, want none", found, err)
	}
}

func TestRedisOutage(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	store := openRedis(t, server.URL())
	if _, err := store.Create(t.Context(), "k", []byte("v"), time.Minute); err != nil {
		t.Fatal(err)
	}
	for name, outage := range map[string]struct{ begin, end func() }{
		"killed": {server.Kill, server.Start},
		"frozen": {server.Freeze, server.Thaw},
	} {
		outage.begin()
		began := time.Now()
		if _, _, found, err := store.Get(t.Context(), "k"); err == nil {
			t.Errorf("%s: Get: got %v, nil, want an error", name, found)
		}
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("%s: the error took %v", name, took)
		}
		outage.end()
		var found bool
		var err error
		for range 50 { // old connections may still fail
			if _, _, found, err = store.Get(t.Context(), "k"); err == nil {
				break
			}
		}
		if !found || err != nil {
			t.Errorf("%s: Get after the outage: got %v, %v, want true, nil", name, found, err)
		}
	}
}

func TestURLErrorsHidePassword(t *testing.T) {
	for _, url := range []string{"", "localhost:6379", "http://localhost", "redis://:pw/1@host",
		"redis://user:hunter2@host:port", "redis://h/notanumber?password=hunter2", "redis://user:hun%ter2@h"} {
		_, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: url})
		if err == nil {
			t.Errorf("%q: no error", url)
			continue
		}
		mistake, ok := errors.AsType[*tokenstore.ConfigError](err)
		if !ok || mistake.Key != "URL" {
			t.Errorf("%q: got %v, want a ConfigError of URL", url, err)
			continue
		}
		for _, secret := range []string{"hunter", "hun%", "pw"} {
			if strings.Contains(mistake.Value+err.Error(), secret) {
				t.Errorf("%q: the error shows the password: %v", url, err)
			}
		}
	}
}

func TestMemoryRemovesExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var store tokenstore.Memory
		for i := range 1000 {
			if _, err := store.Create(t.Context(), fmt.Sprint(i), make([]byte, 1024), time.Second); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Minute)
		if _, err := store.Create(t.Context(), "last", nil, time.Second); err != nil {
			t.Fatal(err)
		}
		if n := store.Len(); n != 1 {
			t.Errorf("got %d records in memory, want 1", n)
		}
	})
}

func openRedis(t *testing.T, url string) *tokenstore.Redis {
	t.Helper()
	store, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}
