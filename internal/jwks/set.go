// Package jwks verifies signatures with the keys that an issuer publishes.
//
// A [Set] caches the JWK Set of one issuer (RFC 7517). It fetches only because
// of verifications, which need no request while the cached keys are current:
//
//   - Keys are current for the max-age of their Cache-Control, at least 1
//     minute and at most Config.MaxLifetime, or for 10 minutes without one. A
//     verification in the last fifth of that starts a fetch in the background.
//     If there was none, the next one waits for the fetch. A key that the
//     issuer withdraws is thus trusted no longer than that.
//   - While the issuer fails, or publishes a set without a usable key, the last
//     good keys remain usable for up to another hour.
//   - A token with an unknown key waits for a fetch that began after the token
//     arrived. All waiting tokens share it. The caller limits the rate of such
//     fetches, because any client can send tokens with unknown keys.
//   - A fetch without a response sends another request each second, so that one
//     that is lost delays no token by more.
//   - After a failed fetch the next one starts 5 seconds later at the earliest.
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

	repeatInterval = time.Second // after which a fetch calls Config.Fetch once more
)

var (
	// ErrUnavailable means that there are no usable keys. The token was not
	// checked.
	ErrUnavailable = errors.New("the issuer's keys are not available")

	// ErrUnknownKey means that none of the cached keys is the signer's. The
	// issuer may publish it later: the token is not necessarily forged.
	ErrUnknownKey = errors.New("no key of the issuer fits")

	// ErrSignature means that the issuer's key did not create the signature.
	ErrSignature = errors.New("invalid signature")
)

// Config describes the source of the keys.
type Config struct {
	// Issuer is logged.
	Issuer string
	// Fetch requests the JWK Set.
	Fetch func(context.Context) (*Document, error)
	// KidsReused means that the issuer may replace a key by another one with
	// the same kid. An invalid signature is then checked with newer keys, too,
	// as if the kid were unknown.
	KidsReused bool
	// MaxLifetime is the maximum lifetime of the keys, whatever Cache-Control
	// says.
	MaxLifetime time.Duration
	// Logger gets a record when a fetch fails, and when one succeeds after
	// that.
	Logger *slog.Logger
}

// Keys holds the keys of one response. It is immutable.
type Keys struct {
	keys       []Key
	fetch      int       // number of the fetch that returned them
	refreshAt  time.Time // from then on, newer ones are fetched in the background
	expiresAt  time.Time // from then on, they are used only if the issuer fails
	staleUntil time.Time // from then on, they are not used
}

// Set caches the keys of an issuer. It is safe for concurrent use.
type Set struct {
	cfg Config

	mu       sync.Mutex          // guards the fields below
	keys     *Keys               // the last good ones; nil at first
	fetching *flight.Call[*Keys] // the fetch in flight; nil if there is none
	err      error               // of the last fetch; nil if it was good
	failedAt time.Time           // when a fetch last failed
	begun    int                 // number of fetches begun
}

// NewSet returns a Set that has no keys yet. It does no I/O.
func NewSet(cfg Config) *Set { return &Set{cfg: cfg} }

// Verify checks the signature of a token after ReadHeader. It returns the keys
// that it used. The error wraps ErrUnavailable, ErrUnknownKey or ErrSignature.
// A fetch because of an unknown key takes one token of limit. If there is none,
// the cached keys decide, and the error is ErrUnknownKey where newer keys might
// verify the signature.
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

// Current returns the keys to verify with. It waits only if there are no usable
// ones. If they are old, it starts a fetch in the background.
func (s *Set) Current(ctx context.Context) (*Keys, error) {
	keys, _, err := s.current(ctx)
	return keys, err
}

// current is Current. It also returns the number of fetches begun before.
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
	case stale && !failedAt.Before(keys.refreshAt): // the last fetch failed: do not wait for another
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

// newer returns keys that are newer than keys, or keys itself if limit does not
// allow a fetch.
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
	case lastErr != nil: // the key may be new
		return nil, unavailable(lastErr)
	}
	return keys, nil
}

// start begins a fetch, which ends after fetchTimeout at the latest. The caller
// holds s.mu.
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

// finish stores the result of a fetch. Only good keys replace good keys.
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
	document, err := flight.Repeat(ctx, repeatInterval, s.cfg.Fetch)
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

// lifetime returns how long a response is current (RFC 9111, section 5.2.2): at
// least minLifetime and, if that is longer, at most most.
func lifetime(header http.Header, most time.Duration) time.Duration {
	life := min(defaultLifetime, most)
	for directive := range strings.SplitSeq(strings.Join(header.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "no-store", "no-cache":
			return minLifetime
		case "max-age":
			if seconds, err := strconv.Atoi(strings.Trim(value, `"`)); err == nil {
				life = min(max(0, time.Duration(seconds)), most/time.Second) * time.Second
			}
		}
	}
	return max(life, minLifetime)
}

// verify checks the signature. The error wraps ErrUnknownKey if newer keys
// might verify it. A token without a kid may be signed with any key that fits.
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
		return fmt.Errorf("%w: there is no kid, and no key for %s verifies the signature", ErrUnknownKey, t.Algorithm)
	case !known:
		return fmt.Errorf("%w: kid is %.80q", ErrUnknownKey, t.KeyID)
	}
	return fmt.Errorf("%w: the key %.80q did not create it with %s", ErrSignature, t.KeyID, t.Algorithm)
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
