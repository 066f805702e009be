package bff

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/session"
)

// An attempt is completed once, on whichever replica its response arrives. A
// browser may send the response twice at once, if the user presses a button
// twice. A code that is redeemed twice may end the tokens of the first time
// (RFC 6749 4.1.2). So the first request claims the attempt in the store before
// it redeems the code. The others wait, and end as it does.
//
// A claim is the one thing in the store that a client without a session can
// cause. It is deleted as soon as the provider refuses the code, and the budget
// of failed exchanges bounds how many there are meanwhile.

const (
	// joinPoll is how often a request that waits for another looks at its
	// claim.
	joinPoll = 100 * time.Millisecond
	// joinTimeout is how long it waits.
	joinTimeout = 20 * time.Second
	// shareLife is how long the session cookie of a login is kept for other
	// requests with the same attempt and response.
	shareLife = 30 * time.Second
)

// errCompletedBefore is the error of a response to an attempt that was
// completed longer ago.
var errCompletedBefore = problem.BadCallback.WithCause(errors.New("the attempt was completed before"))

// loginClaim names what the store has of an attempt: its claim, and, when it is
// completed, its result.
type loginClaim struct{ claim, result string }

// consumeAttempt claims an attempt. It returns false if another request has
// done so.
func (a *app) consumeAttempt(ctx context.Context, at *attempt) (keys loginClaim, first bool, err error) {
	sum := sha256.Sum256([]byte(at.State))
	name := base64.RawURLEncoding.EncodeToString(sum[:16])
	keys = loginClaim{"login:" + name, "login-result:" + name}
	first, err = a.store.Create(ctx, keys.claim, []byte(rand.Text()), attemptLife) // a value of this request's own
	if err != nil {
		return keys, false, fmt.Errorf("%w: claim login attempt: %w", session.ErrStore, err)
	}
	return keys, first, nil
}

// dropClaim deletes the claim of an attempt that has failed. If the store is
// out of reach, the claim expires.
func (a *app) dropClaim(ctx context.Context, keys loginClaim) {
	if err := a.store.Delete(ctx, keys.claim); err != nil {
		a.log.DebugContext(ctx, "claim of a failed login not deleted; it expires", "err", err)
	}
}

// shareLogin leaves the session cookie that is in w for other requests with the
// same attempt. Only the holder of the attempt's cookie can open it.
func (a *app) shareLogin(ctx context.Context, w *response, keys loginClaim, at *attempt) {
	var cookie string
	for _, line := range w.Header()["Set-Cookie"] {
		if strings.HasPrefix(line, a.cookie.Name()+"=") {
			cookie = line
		}
	}
	sealed := at.aead().Seal(nil, nil, []byte(cookie), []byte(keys.result))
	if _, err := a.store.Create(ctx, keys.result, sealed, shareLife); err != nil {
		a.log.DebugContext(ctx, "login not shared with requests that wait for it", "err", err)
	}
}

// joinLogin waits for the request that has claimed the attempt, and ends as it
// does.
func (a *app) joinLogin(ctx context.Context, w *response, keys loginClaim, at *attempt) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	for {
		sealed, _, found, err := a.store.Get(ctx, keys.result)
		if err == nil && found {
			cookie, err := at.aead().Open(nil, nil, sealed, []byte(keys.result))
			if err != nil {
				return errCompletedBefore
			}
			w.Header().Add("Set-Cookie", string(cookie))
			a.finish(w, at, true)
			return nil
		}
		var ttl time.Duration
		if err == nil {
			_, ttl, found, err = a.store.Get(ctx, keys.claim)
		}
		switch {
		case ctx.Err() != nil:
			return errCompletedBefore
		case err != nil:
			return fmt.Errorf("%w: read login claim: %w", session.ErrStore, err)
		case !found:
			return problem.LoginRefused.WithCause(errors.New("the same response was refused in another request"))
		case attemptLife-ttl > shareLife: // the result has expired
			return errCompletedBefore
		}
		select {
		case <-time.After(joinPoll):
		case <-ctx.Done():
			return errCompletedBefore
		}
	}
}

// aead returns a cipher whose key is made of the attempt's verifier.
func (at *attempt) aead() cipher.AEAD {
	return newAEAD([]byte(at.Verifier.Reveal()), "login result")
}

// newAEAD returns a cipher whose key is made of a secret for one purpose (RFC
// 5869). It chooses its nonces itself.
func newAEAD(secret []byte, purpose string) cipher.AEAD {
	key, err := hkdf.Key(sha256.New, secret, nil, "cloakroom "+purpose, 32)
	if err != nil {
		panic(err) // only for a size beyond 255 hashes
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the key has 32 bytes
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // AES has blocks of 16 bytes
	}
	return aead
}

// hasSessionCookie reports whether the browser sent a session cookie, whatever
// is in it.
func (a *app) hasSessionCookie(r *http.Request) bool {
	return len(r.CookiesNamed(a.cookie.Name())) > 0
}
