package bearer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	defaultLifetime = 10 * time.Minute // of keys whose answer has no max-age
	minLifetime     = time.Minute
	maxLifetime     = time.Hour
	staleWindow     = time.Hour // how long past its lifetime a set serves while no newer one can be had

	coolDown     = 30 * time.Second // between two fetches for the sake of unknown kids
	retryDelay   = 5 * time.Second  // after a fetch that failed
	fetchTimeout = 10 * time.Second // for metadata and keys together
	maxAnswer    = 1 << 20          // bytes of either
)

// keySet is what the issuer published at one time. It does not change.
type keySet struct {
	keys       []publicKey
	refreshAt  time.Time // from here on, a newer one is fetched in the background
	expiresAt  time.Time // from here on, it serves only because the issuer fails
	staleUntil time.Time // from here on, it does not serve
}

// remoteKeys keeps the keys of the issuer. All its work is started by verifications.
type remoteKeys struct {
	issuer string
	client *http.Client
	log    *slog.Logger

	mu       sync.Mutex // guards what follows
	set      *keySet    // the last good one; nil until there is one
	fetching *fetch     // the fetch under way; nil if there is none
	err      error      // of the last fetch; nil if it was good
	failedAt time.Time  // when a fetch last failed
	soughtAt time.Time  // when a fetch was last made for an unknown kid
}

// fetch is one attempt to get the keys, shared by all who wait for it.
type fetch struct {
	done chan struct{} // closed when set or err is there
	set  *keySet
	err  error
}

func newRemoteKeys(issuer string, client *http.Client, log *slog.Logger) *remoteKeys {
	return &remoteKeys{issuer: issuer, client: confined(client), log: log}
}

// confined returns a client as the one given, or as the default, that stays on the host that it asks.
func confined(client *http.Client) *http.Client {
	if client == nil {
		client = new(http.Client)
	}
	ours := *client
	ours.CheckRedirect = sameHostOnly
	return &ours
}

// sameHostOnly lets nobody but the issuer say what its keys are: a redirect to another host, or to another scheme, fails.
func sameHostOnly(r *http.Request, via []*http.Request) error {
	switch first := via[0].URL; {
	case r.URL.Scheme != first.Scheme || r.URL.Host != first.Host:
		return fmt.Errorf("it redirects to %s://%s", r.URL.Scheme, r.URL.Host)
	case len(via) > 3:
		return errors.New("it redirects again and again")
	}
	return nil
}

// current returns the keys to verify with, and whether they have been fetched just now. While there are some that may be used it does not
// wait, but starts a fetch in the background when they get old.
func (r *remoteKeys) current(ctx context.Context) (set *keySet, latest bool, err error) {
	now := time.Now()
	r.mu.Lock()
	set = r.set
	if set != nil && now.Before(set.refreshAt) {
		r.mu.Unlock()
		return set, false, nil
	}
	pending := r.fetching
	if pending == nil && now.Sub(r.failedAt) >= retryDelay {
		pending = r.start(ctx)
	}
	lastErr, failedAt := r.err, r.failedAt
	r.mu.Unlock()

	stale := set != nil && now.Before(set.staleUntil)
	switch {
	case stale && now.Before(set.expiresAt):
		return set, false, nil
	case stale && !failedAt.Before(set.refreshAt): // the issuer was asked, and failed; nobody waits for its next failure
		return set, false, nil
	case pending == nil:
		return nil, false, unavailable(lastErr)
	}
	newer, err := pending.wait(ctx)
	if err != nil && stale {
		return set, false, nil
	}
	return newer, true, err
}

// newer returns keys that are newer than set, for a token whose key is not in set. It returns set itself if the issuer was asked for the sake
// of an unknown key a short while ago: otherwise anybody could make us ask all the time.
func (r *remoteKeys) newer(ctx context.Context, set *keySet) (*keySet, error) {
	r.mu.Lock()
	if r.set != set {
		defer r.mu.Unlock()
		return r.set, nil
	}
	pending := r.fetching
	if now := time.Now(); pending == nil && now.Sub(r.soughtAt) >= coolDown && now.Sub(r.failedAt) >= retryDelay {
		r.soughtAt = now
		pending = r.start(ctx)
	}
	lastErr := r.err
	r.mu.Unlock()

	switch {
	case pending != nil:
		return pending.wait(ctx)
	case lastErr != nil: // the key may be a new one, which we cannot know
		return nil, unavailable(lastErr)
	}
	return set, nil
}

// start begins a fetch. It is not part of the request that it was started by, whose end would fail it for all who wait, and it
// ends by itself after fetchTimeout at the latest. The caller holds r.mu.
func (r *remoteKeys) start(ctx context.Context) *fetch {
	f := &fetch{done: make(chan struct{})}
	r.fetching = f
	go func() {
		defer close(f.done)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		f.set, f.err = r.fetch(ctx)
		r.finish(ctx, f)
	}()
	return f
}

// finish takes over what a fetch brought. Only a good set replaces a good set.
func (r *remoteKeys) finish(ctx context.Context, f *fetch) {
	r.mu.Lock()
	before, beforeErr := r.set, r.err
	r.fetching, r.err = nil, f.err
	if f.err != nil {
		r.failedAt = time.Now()
	} else {
		r.set = f.set
	}
	r.mu.Unlock()

	switch {
	case f.err != nil && before != nil:
		r.log.WarnContext(ctx, "keys cannot be fetched", "issuer", r.issuer, "err", f.err, "have_keys_until", before.staleUntil)
	case f.err != nil:
		r.log.WarnContext(ctx, "keys cannot be fetched", "issuer", r.issuer, "err", f.err)
	case before == nil || beforeErr != nil:
		r.log.InfoContext(ctx, "keys fetched", "issuer", r.issuer, "keys", len(f.set.keys))
	}
}

func (f *fetch) wait(ctx context.Context) (*keySet, error) {
	select {
	case <-ctx.Done():
		return nil, unavailable(ctx.Err())
	case <-f.done:
	}
	if f.err != nil {
		return nil, unavailable(f.err)
	}
	return f.set, nil
}

func unavailable(err error) error { return fmt.Errorf("%w: %w", ErrUnavailable, err) }

// fetch asks the issuer's metadata where its keys are, and gets them. It does so each time, so that the keys may move.
func (r *remoteKeys) fetch(ctx context.Context) (*keySet, error) {
	asked := time.Now()
	// OpenID Connect Discovery 1.0 section 4: a slash at the end of the issuer gives way to the path. It stays part of the issuer.
	where := strings.TrimSuffix(r.issuer, "/") + "/.well-known/openid-configuration"
	body, _, err := r.get(ctx, where)
	if errors.Is(err, errNotFound) { // RFC 8414 section 3.1 puts it between host and path
		u, parseErr := url.Parse(r.issuer)
		if parseErr != nil {
			return nil, parseErr
		}
		where = u.Scheme + "://" + u.Host + "/.well-known/oauth-authorization-server" + strings.TrimSuffix(u.EscapedPath(), "/")
		body, _, err = r.get(ctx, where)
	}
	if err != nil {
		return nil, err
	}
	var metadata struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(body, &metadata); err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if metadata.Issuer != r.issuer { // section 4.3
		return nil, fmt.Errorf("%s: issuer is %.200q, want %q", where, metadata.Issuer, r.issuer)
	}
	if _, err := checkURL(metadata.Keys, strings.HasPrefix(r.issuer, "http:")); err != nil {
		return nil, fmt.Errorf("%s: jwks_uri: %w", where, err)
	}
	body, header, err := r.get(ctx, metadata.Keys)
	if err != nil {
		return nil, err
	}
	keys, skipped, err := parseKeys(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", metadata.Keys, err)
	}
	if len(skipped) > 0 {
		r.log.DebugContext(ctx, "keys skipped", "issuer", r.issuer, "err", errors.Join(skipped...))
	}
	life := lifetime(header)
	expires := asked.Add(life)
	return &keySet{keys: keys, refreshAt: expires.Add(-life / 5), expiresAt: expires, staleUntil: expires.Add(staleWindow)}, nil
}

var errNotFound = errors.New("it answers 404 Not Found")

func (r *remoteKeys) get(ctx context.Context, url string) (body []byte, header http.Header, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, nil, fmt.Errorf("%s: %w", url, errNotFound)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s: it answers %s", url, resp.Status)
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("%s: %w", url, err)
	case len(body) > maxAnswer:
		return nil, nil, fmt.Errorf("%s: its answer is longer than %d bytes", url, maxAnswer)
	}
	return body, resp.Header, nil
}

// lifetime is how long an answer is current (RFC 9111 section 5.2.2), within bounds.
func lifetime(header http.Header) time.Duration {
	life := defaultLifetime
	for directive := range strings.SplitSeq(strings.Join(header.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "no-store", "no-cache":
			return minLifetime
		case "max-age":
			if seconds, err := strconv.Atoi(strings.Trim(value, `"`)); err == nil {
				life = min(time.Duration(seconds), maxLifetime/time.Second) * time.Second
			}
		}
	}
	return max(life, minLifetime)
}
