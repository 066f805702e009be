// Package jwks verifies signatures with the keys that an issuer publishes.
//
// A [Set] follows the JWK Set of one issuer (RFC 7517). All its work is started
// by verifications, which take no request while the keys at hand are current:
//
//   - Keys are current for the max-age of their Cache-Control, at least 1 minute
//     and at most Config.MaxLifetime, or for 10 minutes without one. A
//     verification in the last fifth of that starts a fetch in the background. If
//     there was none, the next one waits for the fetch. A key that the issuer
//     withdraws is thus trusted no longer than that.
//   - While the issuer fails, or publishes a set without a usable key, the last
//     good keys serve for up to another hour.
//   - A token whose key is not among those at hand waits for a fetch that began
//     after it arrived, and that all who wait share. The caller says how many such
//     fetches there may be: anybody can make up tokens with unknown keys.
//   - After a failure nothing is fetched for 5 seconds.
package jwks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/cloakroom-bff/cloakroom/internal/flight"
)

const (
	defaultLifetime = 10 * time.Minute // of keys whose response has no max-age
	minLifetime     = time.Minute
	staleWindow     = time.Hour // how long past its lifetime a set serves while no newer one can be fetched

	retryDelay   = 5 * time.Second  // after a fetch that failed
	fetchTimeout = 10 * time.Second // for all requests of a fetch together
)

var (
	// ErrUnavailable means that there are no keys to decide with. It says nothing
	// about the token.
	ErrUnavailable = errors.New("the issuer's keys cannot be had")

	// ErrUnknownKey means that the signer's key is not among the keys at hand. The
	// issuer may publish it later, so it does not mean that the token is forged.
	ErrUnknownKey = errors.New("no key of the issuer fits")

	// ErrSignature means that the issuer's key has not made the signature.
	ErrSignature = errors.New("the signature is not right")
)

// Config says where the keys come from.
type Config struct {
	// Issuer names whose keys they are, for the log.
	Issuer string
	// Fetch requests the JWK Set.
	Fetch func(context.Context) (*Document, error)
	// KidsReused means that the issuer may replace a key by another one of the same
	// kid. Then a signature that is wrong is checked with newer keys too, as if the
	// kid were unknown.
	KidsReused bool
	// MaxLifetime bounds the lifetime of the keys, whatever their response says.
	MaxLifetime time.Duration
	// Logger is told when the keys cannot be fetched, and when they can again.
	Logger *slog.Logger
}

// Keys is what the issuer published at one time. It does not change.
type Keys struct {
	keys       []Key
	fetch      int       // by which fetch they came
	refreshAt  time.Time // from here on, newer ones are fetched in the background
	expiresAt  time.Time // from here on, they serve only because the issuer fails
	staleUntil time.Time // from here on, they do not serve
}

// Set follows the keys of an issuer. It is safe for concurrent use.
type Set struct {
	cfg Config

	mu       sync.Mutex          // guards what follows
	keys     *Keys               // the last good ones; nil until there are some
	fetching *flight.Call[*Keys] // the fetch in flight; nil if there is none
	err      error               // of the last fetch; nil if it was good
	failedAt time.Time           // when a fetch last failed
	begun    int                 // how many fetches have begun
}

// NewSet returns a Set that has no keys yet. It does no I/O.
func NewSet(cfg Config) *Set { return &Set{cfg: cfg} }

// Verify checks the signature of a token whose header was read, and returns the
// keys that it was checked with. The error wraps ErrUnavailable, ErrUnknownKey or
// ErrSignature. A fetch for the sake of an unknown key takes one token of limit;
// without one the keys at hand decide, and the error is never ErrSignature where
// newer keys might make a difference.
func (s *Set) Verify(ctx context.Context, t *Token, limit *rate.Limiter) (*Keys, error) {
	keys, begun, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	for {
		err := keys.verify(t)
		newerMayDo := errors.Is(err, ErrUnknownKey) || s.cfg.KidsReused && errors.Is(err, ErrSignature)
		if !newerMayDo {
			return keys, err
		}
		if keys.fetch > begun { // they are newer than the token
			if t.KeyID == "" { // the keys are complete, and one of them should fit
				return keys, fmt.Errorf("%w: %v", ErrSignature, err)
			}
			return keys, err
		}
		newer, fetchErr := s.newer(ctx, keys, limit) // OpenID Connect Core 1.0, section 10.1.1
		if fetchErr != nil {
			return nil, fetchErr
		}
		if newer == keys {
			if !errors.Is(err, ErrUnknownKey) {
				err = fmt.Errorf("%w: %v", ErrUnknownKey, err)
			}
			return keys, err
		}
		keys = newer
	}
}

// Current returns the keys to verify with. While there are some that may be used
// it does not wait, but starts a fetch in the background when they get old.
func (s *Set) Current(ctx context.Context) (*Keys, error) {
	keys, _, err := s.current(ctx)
	return keys, err
}

// current is Current. It also returns how many fetches had begun before.
func (s *Set) current(ctx context.Context) (keys *Keys, begun int, err error) {
	now := time.Now()
	s.mu.Lock()
	keys, begun = s.keys, s.begun
	if keys != nil && now.Before(keys.refreshAt) {
		s.mu.Unlock()
		return keys, begun, nil
	}
	pending := s.fetching
	if pending == nil && now.Sub(s.failedAt) >= retryDelay {
		pending = s.start(ctx)
	}
	lastErr, failedAt := s.err, s.failedAt
	s.mu.Unlock()

	stale := keys != nil && now.Before(keys.staleUntil)
	switch {
	case stale && now.Before(keys.expiresAt):
		return keys, begun, nil
	case stale && !failedAt.Before(keys.refreshAt): // the issuer was asked, and failed; nobody waits for its next failure
		return keys, begun, nil
	case pending == nil:
		return nil, begun, unavailable(lastErr)
	}
	newer, err := pending.Wait(ctx)
	switch {
	case err != nil && stale:
		return keys, begun, nil
	case err != nil:
		return nil, begun, unavailable(err)
	}
	return newer, begun, nil
}

// newer returns keys that are newer than keys. It returns keys itself if limit
// does not allow a fetch.
func (s *Set) newer(ctx context.Context, keys *Keys, limit *rate.Limiter) (*Keys, error) {
	s.mu.Lock()
	if s.keys != keys {
		defer s.mu.Unlock()
		return s.keys, nil
	}
	pending := s.fetching
	if pending == nil && time.Since(s.failedAt) >= retryDelay && limit.Allow() {
		pending = s.start(ctx)
	}
	lastErr := s.err
	s.mu.Unlock()

	switch {
	case pending != nil:
		newer, err := pending.Wait(ctx)
		if err != nil {
			return nil, unavailable(err)
		}
		return newer, nil
	case lastErr != nil: // the key may be a new one, which we cannot know
		return nil, unavailable(lastErr)
	}
	return keys, nil
}

// start begins a fetch. It ends after fetchTimeout at the latest. The caller holds
// s.mu.
func (s *Set) start(ctx context.Context) *flight.Call[*Keys] {
	s.begun++
	n := s.begun
	s.fetching = flight.Start(ctx, fetchTimeout, func(ctx context.Context) (*Keys, error) {
		keys, err := s.fetch(ctx)
		if err == nil {
			keys.fetch = n
		}
		s.finish(ctx, keys, err)
		return keys, err
	})
	return s.fetching
}

// finish takes over the result of a fetch. Only good keys replace good keys.
func (s *Set) finish(ctx context.Context, keys *Keys, err error) {
	s.mu.Lock()
	before, beforeErr := s.keys, s.err
	s.fetching, s.err = nil, err
	if err != nil {
		s.failedAt = time.Now()
	} else {
		s.keys = keys
	}
	s.mu.Unlock()

	log := s.cfg.Logger.With("issuer", s.cfg.Issuer)
	switch {
	case err != nil && before != nil:
		log.WarnContext(ctx, "keys cannot be fetched", "err", err, "have_keys_until", before.staleUntil)
	case err != nil:
		log.WarnContext(ctx, "keys cannot be fetched", "err", err)
	case before == nil || beforeErr != nil:
		log.InfoContext(ctx, "keys fetched", "keys", len(keys.keys))
	}
}

func unavailable(err error) error { return fmt.Errorf("%w: %w", ErrUnavailable, err) }

func (s *Set) fetch(ctx context.Context) (*Keys, error) {
	asked := time.Now()
	document, err := s.cfg.Fetch(ctx)
	if err != nil {
		return nil, err
	}
	keys, skipped, err := parseSet(document.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", document.URL, err)
	}
	if skipped != nil {
		s.cfg.Logger.DebugContext(ctx, "keys skipped", "issuer", s.cfg.Issuer, "err", skipped)
	}
	life := lifetime(document.Header, s.cfg.MaxLifetime)
	expires := asked.Add(life)
	return &Keys{
		keys:      keys,
		refreshAt: expires.Add(-life / 5), expiresAt: expires, staleUntil: expires.Add(staleWindow),
	}, nil
}

// lifetime is how long a response is current (RFC 9111, section 5.2.2), within
// bounds.
func lifetime(header http.Header, most time.Duration) time.Duration {
	life := min(defaultLifetime, most)
	for directive := range strings.SplitSeq(strings.Join(header.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "no-store", "no-cache":
			return minLifetime
		case "max-age":
			if seconds, err := strconv.Atoi(strings.Trim(value, `"`)); err == nil {
				life = min(time.Duration(seconds), most/time.Second) * time.Second
			}
		}
	}
	return max(life, minLifetime)
}

// verify checks the signature. The error wraps ErrUnknownKey if newer keys of the
// issuer might make a difference. A token without a kid may be signed with any
// key that fits.
func (k *Keys) verify(t *Token) error {
	known := false
	for i := range k.keys {
		key := &k.keys[i]
		if t.KeyID != "" && key.id != t.KeyID {
			continue
		}
		known = true
		if key.Fits(t.Algorithm) && key.Verifies(t) {
			return nil
		}
	}
	switch {
	case t.KeyID == "":
		return fmt.Errorf("%w: there is no kid, and no key for %s is the signer's", ErrUnknownKey, t.Algorithm)
	case !known:
		return fmt.Errorf("%w: kid is %.80q", ErrUnknownKey, t.KeyID)
	}
	return fmt.Errorf("%w: the key %.80q has not made it with %s", ErrSignature, t.KeyID, t.Algorithm)
}

// Fitting returns how many of the keys fit an algorithm.
func (k *Keys) Fitting(alg string) int {
	n := 0
	for i := range k.keys {
		if k.keys[i].Fits(alg) {
			n++
		}
	}
	return n
}
