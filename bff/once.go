package bff

import (
	"bytes"
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
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// An attempt is completed once, on whichever replica its response arrives. A
// browser may send the response twice at once, if the user presses a button
// twice. A code that is redeemed twice may end the tokens of the first time (RFC
// 6749 4.1.2). So the first request claims the attempt in the store before it
// redeems the code. The others wait, and end as it does.
//
// A claim is the one thing in the store that somebody without a session can
// cause. It is deleted as soon as the provider refuses the code, and the budget
// of failed exchanges bounds how many there are meanwhile.

const (
	// joinPoll is how often a request that waits for another looks at its claim.
	joinPoll = 100 * time.Millisecond
	// joinTimeout is how long it waits.
	joinTimeout = 20 * time.Second
	// shareLife is how long after a login its session cookie is given to other
	// requests with the same attempt and response.
	shareLife = 30 * time.Second
)

// errCompletedBefore is the error of a response to an attempt that was completed
// longer ago.
var errCompletedBefore = errBadCallback.because(errors.New("the attempt was completed before"))

// loginClaim is the right to complete an attempt.
type loginClaim struct {
	key   string
	value []byte // of this request's own
}

// claim claims an attempt. It returns false if another request has done so.
func (s *Server) claim(ctx context.Context, a *attempt) (claim loginClaim, first bool, err error) {
	sum := sha256.Sum256([]byte(a.State))
	claim = loginClaim{"login:" + base64.RawURLEncoding.EncodeToString(sum[:16]), []byte(rand.Text())}
	first, err = s.store.Create(ctx, claim.key, claim.value, attemptLife)
	if err != nil {
		return claim, false, fmt.Errorf("%w: claim login attempt: %w", session.ErrStore, err)
	}
	return claim, first, nil
}

// dropClaim deletes the claim of an attempt that has failed. If the store is out
// of reach, the claim expires.
func (s *Server) dropClaim(ctx context.Context, claim loginClaim) {
	if err := s.store.Delete(ctx, claim.key); err != nil {
		s.log.WarnContext(ctx, "claim of a failed login not deleted; it expires", "err", err)
	}
}

// sharedMark is what the value of a claim begins with once the attempt is
// completed.
var sharedMark = []byte("done ")

// shareLogin leaves the session cookie that is in w for other requests with the
// same attempt. Only the holder of the attempt's cookie can open it.
func (s *Server) shareLogin(ctx context.Context, w *response, claim loginClaim, a *attempt) {
	var cookie string
	for _, line := range w.Header()["Set-Cookie"] {
		if strings.HasPrefix(line, s.sessions.CookieName()+"=") {
			cookie = line
		}
	}
	plain := strconv.AppendInt(nil, time.Now().UnixMilli(), 10)
	plain = append(append(plain, ' '), cookie...)
	value := append(bytes.Clone(sharedMark), a.aead().Seal(nil, nil, plain, []byte(claim.key))...)
	if _, err := s.store.Replace(ctx, claim.key, claim.value, value); err != nil {
		s.log.WarnContext(ctx, "login not shared with requests that wait for it", "err", err)
	}
}

// joinLogin waits for the request that has claimed the attempt, and ends as it
// does.
func (s *Server) joinLogin(ctx context.Context, w *response, claim loginClaim, a *attempt) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	for {
		value, _, found, err := s.store.Get(ctx, claim.key)
		switch {
		case err != nil:
			return fmt.Errorf("%w: read login claim: %w", session.ErrStore, err)
		case !found:
			return errLoginRefused.because(errors.New("the same response was refused in another request"))
		case bytes.HasPrefix(value, sharedMark):
			cookie, err := a.openShared(value[len(sharedMark):], claim.key)
			if err != nil {
				return err
			}
			if cookie != "" {
				w.Header().Add("Set-Cookie", cookie)
			}
			s.finish(w, a, true)
			return nil
		}
		select {
		case <-time.After(joinPoll):
		case <-ctx.Done():
			return errProviderUnavailable.because(fmt.Errorf("wait for the same login in another request: %w", ctx.Err()))
		}
	}
}

// openShared returns the session cookie that another request got for the attempt.
func (a *attempt) openShared(sealed []byte, key string) (cookie string, err error) {
	plain, err := a.aead().Open(nil, nil, sealed, []byte(key))
	if err != nil {
		return "", errCompletedBefore
	}
	at, cookie, _ := strings.Cut(string(plain), " ")
	ms, err := strconv.ParseInt(at, 10, 64)
	if err != nil || time.Since(time.UnixMilli(ms)) > shareLife {
		return "", errCompletedBefore
	}
	return cookie, nil
}

// aead returns a cipher whose key is made of the attempt's verifier.
func (a *attempt) aead() cipher.AEAD {
	return newAEAD([]byte(a.Verifier.Reveal()), "login result")
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

// hasSessionCookie reports whether the browser sent a session cookie, whatever is
// in it.
func (s *Server) hasSessionCookie(r *http.Request) bool {
	return len(r.CookiesNamed(s.sessions.CookieName())) > 0
}
