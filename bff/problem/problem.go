// Package problem has the errors that a browser or a script may see: the
// problem details of RFC 9457, each with a stable code.
//
// A Problem in the catalogue is fixed. The With methods return copies that
// carry what is known about one request: the cause, which only the log has, and
// what the response tells the client to do.
package problem

import (
	"cmp"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"
)

// Problem is an error as the client may see it. It never shows its cause.
type Problem struct {
	Status int    // of the response
	Code   string // stable; scripts branch on it
	Title  string // what happened
	Detail string // what to do about it; may be empty
	// When says when it happens, for docs/errors.md.
	When string

	SignIn     bool          // the body has a login_url
	RetryAfter time.Duration // of the header Retry-After; zero: no header
	Challenge  string        // of the header WWW-Authenticate; empty: the default
	Login      url.Values    // parameters that login_url must have
	ReturnTo   string        // where another try of a login leads

	cause error
}

// Error returns the code and the cause. It is for the log, not for a client.
func (p *Problem) Error() string {
	if p.cause != nil {
		return p.Code + ": " + p.cause.Error()
	}
	return p.Code
}

// Unwrap returns the cause, or nil.
func (p *Problem) Unwrap() error { return p.cause }

// WithCause returns a copy with a cause for the log.
func (p *Problem) WithCause(err error) *Problem {
	q := *p
	q.cause = err
	return &q
}

// WithDetail returns a copy with another text about what to do.
func (p *Problem) WithDetail(text string) *Problem {
	q := *p
	q.Detail = text
	return &q
}

// WithReturnTo returns a copy with the path to which another login returns.
func (p *Problem) WithReturnTo(path string) *Problem {
	q := *p
	q.ReturnTo = path
	return &q
}

// WithChallenge returns a copy with a value for WWW-Authenticate (RFC 9110,
// section 11.6.1).
func (p *Problem) WithChallenge(challenge string) *Problem {
	q := *p
	q.Challenge = challenge
	return &q
}

// WithLogin returns a copy with the parameters of the login that solves it.
func (p *Problem) WithLogin(params url.Values) *Problem {
	q := *p
	q.Login = params
	return &q
}

// WithRetryAfter returns a copy that asks the client to wait.
func (p *Problem) WithRetryAfter(wait time.Duration) *Problem {
	q := *p
	q.RetryAfter = wait
	return &q
}

// SetRetryAfter sets the header Retry-After, in whole seconds rounded up, if
// the problem asks the client to wait (RFC 9110, section 10.2.3).
func (p *Problem) SetRetryAfter(h http.Header) {
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((p.RetryAfter+time.Second-1)/time.Second)))
	}
}

// Level returns the level at which a request that ended with the problem is
// logged.
func (p *Problem) Level() slog.Level {
	switch {
	case p.Status >= 500:
		return slog.LevelError
	case p.Status == http.StatusUnauthorized || p.Status == http.StatusNotFound:
		return slog.LevelInfo
	default:
		return slog.LevelWarn
	}
}

// Catalogue returns all problems, ordered by status and code.
func Catalogue() []*Problem {
	return slices.SortedFunc(slices.Values(catalogue), func(a, b *Problem) int {
		return cmp.Or(cmp.Compare(a.Status, b.Status), cmp.Compare(a.Code, b.Code))
	})
}

// CookieChallenge is the challenge of a 401 that needs no other (RFC 9110,
// section 15.5.2). Its scheme is unknown to browsers, so they do not ask for a
// password.
const CookieChallenge = `Cookie realm="cloakroom"`

var catalogue []*Problem

func define(p *Problem) *Problem {
	catalogue = append(catalogue, p)
	return p
}
