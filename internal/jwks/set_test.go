package jwks_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"github.com/cloakroom-bff/cloakroom/internal/jwks"
)

// issuer publishes keys within the process.
type issuer struct {
	mu      sync.Mutex
	keys    []map[string]any
	header  http.Header
	err     error
	wait    time.Duration // before a response that was made when the request came
	fetches int
}

func (i *issuer) fetch(ctx context.Context) (*jwks.Document, error) {
	i.mu.Lock()
	body, err := json.Marshal(map[string]any{"keys": i.keys})
	if err == nil {
		err = i.err
	}
	wait, header := i.wait, i.header
	i.fetches++
	i.mu.Unlock()
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return &jwks.Document{URL: "https://id.example/jwks", Header: header, Body: body}, nil
}

func (i *issuer) set(edit func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	edit()
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

type signer struct {
	kid     string
	private ed25519.PrivateKey
}

func newSigner(kid string) *signer {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return &signer{kid, private}
}

func (s *signer) jwk() map[string]any {
	x := base64.RawURLEncoding.EncodeToString(s.private.Public().(ed25519.PublicKey))
	return map[string]any{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": s.kid}
}

func (s *signer) token(t *testing.T) *jwks.Token {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	input := encode([]byte(fmt.Sprintf(`{"alg":"EdDSA","kid":%q}`, s.kid))) + "." + encode([]byte("{}"))
	token, err := jwks.Split(input + "." + encode(ed25519.Sign(s.private, []byte(input))))
	if err != nil {
		t.Fatal(err)
	}
	if err := token.ReadHeader(); err != nil {
		t.Fatal(err)
	}
	return token
}

func newSet(i *issuer, edit func(*jwks.Config)) *jwks.Set {
	cfg := jwks.Config{Issuer: "https://id.example", Fetch: i.fetch,
		MaxLifetime: 10 * time.Minute, Logger: slog.New(slog.DiscardHandler)}
	if edit != nil {
		edit(&cfg)
	}
	return jwks.NewSet(cfg)
}

func want(t *testing.T, s *jwks.Set, token *jwks.Token, limit *rate.Limiter, want error, why string) {
	t.Helper()
	if _, err := s.Verify(t.Context(), token, limit); !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", why, err, want)
	}
}

// While made-up keys come every second, each token of a key that has just been
// published is verified at once, and the fetches stay bounded.
func TestUnknownKeysDoNotStarveANewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := new(issuer)
		i.keys = append(i.keys, newSigner("first").jwk())
		s := newSet(i, nil)
		limit := rate.NewLimiter(rate.Every(700*time.Millisecond), 3)
		const minutes = 30
		for n := range minutes * 60 {
			want(t, s, newSigner(rand.Text()).token(t), limit, jwks.ErrUnknownKey, "junk")
			if n%7 == 3 {
				fresh := newSigner(fmt.Sprint("fresh", n))
				i.set(func() { i.keys = []map[string]any{fresh.jwk()} })
				want(t, s, fresh.token(t), limit, nil, "a key that was published this moment")
			}
			time.Sleep(time.Second)
		}
		if n, bound := i.count(), 1+3+minutes*60*10/7; n > bound {
			t.Errorf("%d fetches, want at most %d", n, bound)
		}
	})
}

// However fast made-up keys come, the fetches stay bounded, and a new key is
// known a second later without a fetch of its own.
func TestFetchesBecauseOfUnknownKeysAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := new(issuer)
		i.keys = append(i.keys, newSigner("first").jwk())
		s := newSet(i, nil)
		limit := rate.NewLimiter(rate.Every(time.Second), 3)
		junk := newSigner("junk").token(t)
		flood := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				want(t, s, junk, limit, jwks.ErrUnknownKey, "junk")
			}
		}
		flood(time.Minute)
		if n := i.count(); n > 1+3+60 {
			t.Errorf("%d fetches in a minute, want at most 64", n)
		}
		fresh := newSigner("fresh")
		i.set(func() { i.keys = append(i.keys, fresh.jwk()) })
		flood(1100 * time.Millisecond)
		want(t, s, fresh.token(t), rate.NewLimiter(0, 0), nil, "a key that was published a second ago")
	})
}

// A fetch that began before the token came may be one too old.
func TestUnknownKeyWaitsForAFetchBegunLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{wait: 900 * time.Millisecond} // after a second, a fetch sends another request
		first, fresh := newSigner("first"), newSigner("fresh")
		i.keys = append(i.keys, first.jwk())
		s := newSet(i, nil)
		limit := rate.NewLimiter(rate.Every(time.Second), 3)
		want(t, s, first.token(t), limit, nil, "the first token")
		var all sync.WaitGroup
		all.Go(func() { want(t, s, newSigner("junk").token(t), limit, jwks.ErrUnknownKey, "junk") })
		synctest.Wait()
		time.Sleep(500 * time.Millisecond) // its fetch is in flight
		i.set(func() { i.keys = append(i.keys, fresh.jwk()) })
		want(t, s, fresh.token(t), limit, nil, "a key that was published during a fetch")
		all.Wait()
		if n := i.count(); n != 3 {
			t.Errorf("%d fetches, want 3", n)
		}
	})
}

// A packet filter may drop what a request sends, for example.
func TestLostRequestDelaysNoToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{wait: time.Hour}
		known, fresh := newSigner("known"), newSigner("fresh")
		i.keys = append(i.keys, known.jwk(), fresh.jwk())
		s := newSet(i, nil)
		for _, signer := range []*signer{known, fresh} {
			began := time.Now()
			time.AfterFunc(500*time.Millisecond, func() { i.set(func() { i.wait = 0 }) })
			want(t, s, signer.token(t), rate.NewLimiter(rate.Inf, 1), nil, "after a lost request")
			if took := time.Since(began); took > time.Second {
				t.Errorf("took %v, want at most 1s", took)
			}
		}
	})
}

func TestWithdrawnKeyIsNotUsedAfterItsLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{header: http.Header{"Cache-Control": {"max-age=86400"}}}
		old, left := newSigner("old"), newSigner("left")
		i.keys = []map[string]any{old.jwk(), left.jwk()}
		s := newSet(i, nil)
		limit := rate.NewLimiter(rate.Every(time.Second), 3)
		want(t, s, old.token(t), limit, nil, "before")
		i.set(func() { i.keys = i.keys[1:] })
		want(t, s, old.token(t), limit, nil, "within the lifetime")
		time.Sleep(10 * time.Minute)
		want(t, s, old.token(t), limit, jwks.ErrUnknownKey, "after MaxLifetime")
		want(t, s, left.token(t), limit, nil, "the key that is left")

		// While the issuer fails, the last good keys serve for an hour, and no
		// longer.
		i.set(func() { i.keys = nil })
		time.Sleep(69 * time.Minute)
		want(t, s, left.token(t), limit, nil, "within the hour")
		time.Sleep(2 * time.Minute)
		want(t, s, left.token(t), limit, jwks.ErrUnavailable, "after the hour")
	})
}

func TestReusedKid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, reused := range []bool{false, true} {
			i := new(issuer)
			before, after := newSigner("1"), newSigner("1")
			i.keys = []map[string]any{before.jwk()}
			s := newSet(i, func(c *jwks.Config) { c.KidsReused = reused })
			limit := rate.NewLimiter(rate.Every(time.Second), 3)
			want(t, s, before.token(t), limit, nil, "before")
			want(t, s, before.token(t), rate.NewLimiter(0, 0), nil, "without a fetch")
			want(t, s, after.token(t), limit, jwks.ErrSignature, "a forgery")
			i.set(func() { i.keys = []map[string]any{after.jwk()} })
			if !reused {
				want(t, s, after.token(t), limit, jwks.ErrSignature, "the new key")
				continue
			}
			want(t, s, after.token(t), rate.NewLimiter(0, 0), jwks.ErrUnknownKey,
				"where newer keys might make a difference")
			want(t, s, after.token(t), limit, nil, "the new key")
			want(t, s, before.token(t), limit, jwks.ErrSignature, "the old key")
			i.set(func() { i.err = errors.New("down") })
			want(t, s, before.token(t), rate.NewLimiter(rate.Inf, 1), jwks.ErrUnavailable, "while the issuer is down")
		}
	})
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	good := newSigner("k").jwk()
	for name, test := range map[string]struct {
		edit func(jwk map[string]any)
		good bool
	}{
		"as it is": {func(map[string]any) {}, true},
		"members that are unused": {func(k map[string]any) {
			k["x5c"], k["x5t"], k["exp"], k["nbf"], k["KTY"], k["D"] = 7, nil, "x", []int{}, "RSA", "x"
		}, true},
		"empty members": {func(k map[string]any) {
			k["use"], k["alg"], k["kid"], k["key_ops"] = "", "", "", nil
		}, true},
		"use null":             {func(k map[string]any) { k["use"] = nil }, true},
		"key_ops as a string":  {func(k map[string]any) { k["key_ops"] = "verify" }, true},
		"key_ops as an object": {func(k map[string]any) { k["key_ops"] = map[string]any{} }, false},
		"use as a list":        {func(k map[string]any) { k["use"] = []string{"sig"} }, false},
		"alg as a number":      {func(k map[string]any) { k["alg"] = 7 }, false},
		"kid as a number":      {func(k map[string]any) { k["kid"] = 7 }, false},
		"crv as a number":      {func(k map[string]any) { k["crv"] = 7 }, false},
		"x as a number":        {func(k map[string]any) { k["x"] = 7 }, false},
		"no x":                 {func(k map[string]any) { delete(k, "x") }, false},
		"X for x":              {func(k map[string]any) { k["X"] = k["x"]; delete(k, "x") }, false},
		"d null":               {func(k map[string]any) { k["d"] = nil }, false},
		"a factor":             {func(k map[string]any) { k["p"] = "AQAB" }, false},
		"a secret":             {func(k map[string]any) { k["k"] = "AQAB" }, false},
	} {
		jwk := make(map[string]any)
		for name, value := range good {
			jwk[name] = value
		}
		test.edit(jwk)
		raw, err := json.Marshal(jwk)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := jwks.ParseKey(raw); (err == nil) != test.good ||
			err != nil && strings.Contains(err.Error(), good["x"].(string)[:10]) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
