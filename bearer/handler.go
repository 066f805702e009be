package bearer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Handler returns a handler that lets a request with a good token through to next, which finds the token with [FromContext].
//
// The token is taken from the Authorization header alone, never from the query or the body (RFC 9700 section 4.3.2). The other
// requests get, with Cache-Control: no-store and a problem (RFC 9457) as the body,
//
//   - 401 and a challenge without an error, where there is no token
//   - 401 and invalid_token, where it is not good, or invalid_dpop_proof, where its proof is not
//   - 400 and invalid_request, where there are two, or the header is not well-formed
//   - 503 and Retry-After, where the issuer's keys cannot be had
//
// The body of the request is not looked at, so a token in a form beside the one in the header goes unnoticed here, and unused.
func (v *Verifier) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t, err := v.VerifyRequest(r)
		if err != nil {
			v.log.DebugContext(r.Context(), "request refused", "method", r.Method, "path", r.URL.Path, "err", err)
			v.refuse(w, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, accepted{t, v})))
	})
}

// FromContext returns the token of the request that ctx belongs to, and whether there is one, which is so behind [Verifier.Handler].
func FromContext(ctx context.Context) (*Token, bool) {
	a, ok := ctx.Value(contextKey{}).(accepted)
	return a.token, ok
}

type contextKey struct{}

// accepted is what Handler hands on.
type accepted struct {
	token *Token
	by    *Verifier // for further challenges
}

// Require returns a function that wraps a handler, to be called only with a token that has all the scopes. Others get 403 and
// insufficient_scope, with the scopes that are needed. It goes inside [Verifier.Handler], as the other functions of its kind; outside of one it answers 401 to everything.
//
// It panics without a scope, and for one that is not a scope-token of RFC 6749 section 3.3, as "read write" is not: that would be a guard that
// guards nothing, or lets nobody in.
func Require(scopes ...string) func(http.Handler) http.Handler {
	insufficient := newScopeError("Require", "the token lacks a scope of ", scopes)
	return guard(func(_ *Verifier, t *Token) error {
		for _, scope := range scopes {
			if !t.HasScope(scope) {
				return insufficient
			}
		}
		return nil
	})
}

// RequireAny is as [Require], for a token that has at least one of the scopes.
func RequireAny(scopes ...string) func(http.Handler) http.Handler {
	insufficient := newScopeError("RequireAny", "the token has no scope of ", scopes)
	return guard(func(_ *Verifier, t *Token) error {
		if !slices.ContainsFunc(scopes, t.HasScope) {
			return insufficient
		}
		return nil
	})
}

// RequireACR returns a function that wraps a handler, to be called only with the token of a user who signed in in one of these ways: its acr is one of the values. Others get 401 and
// insufficient_user_authentication with these values, best first, by which a client can have the user sign in as needed (RFC 9470 section 3).
//
// It panics without a value, and for one with other characters than those of Require's scopes.
func RequireACR(values ...string) func(http.Handler) http.Handler {
	demand := &authenticationError{reason: "the user has not signed in in a way that this needs", acr: joined("RequireACR", values)}
	return guard(func(_ *Verifier, t *Token) error {
		if !slices.Contains(values, t.ACR) {
			return demand
		}
		return nil
	})
}

// RequireFresh returns a function that wraps a handler, to be called only with the token of a user who has signed in within maxAge, in whole seconds, by its auth_time. Others get 401 and
// insufficient_user_authentication with max_age (RFC 9470 section 3). Config.Leeway is added, which also covers the way from the sign-in to here. It panics if maxAge is negative.
func RequireFresh(maxAge time.Duration) func(http.Handler) http.Handler {
	if maxAge < 0 {
		panic("bearer: RequireFresh with " + maxAge.String())
	}
	maxAge = maxAge.Truncate(time.Second)
	demand := &authenticationError{reason: "the user has signed in too long ago for this", maxAge: strconv.Itoa(int(maxAge / time.Second))}
	return guard(func(v *Verifier, t *Token) error {
		age, leeway := time.Since(t.AuthTime), v.leeway(t)
		if t.AuthTime.IsZero() || age < -leeway || age > maxAge+leeway {
			return demand
		}
		return nil
	})
}

// guard makes a wrapper of what may be said of a token that is good.
func guard(check func(by *Verifier, t *Token) error) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a, ok := r.Context().Value(contextKey{}).(accepted)
			if !ok {
				new(Verifier).refuse(w, errNoToken)
				return
			}
			if err := check(a.by, a.token); err != nil {
				a.by.refuse(w, err)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// joined returns values of a challenge with spaces between them. It panics where that would not be what was meant.
func joined(function string, values []string) string {
	if len(values) == 0 {
		panic("bearer: " + function + " without a value")
	}
	for _, value := range values {
		if !isScope(value) {
			panic("bearer: " + function + " with " + strconv.Quote(value) + ", which is not one value")
		}
	}
	return strings.Join(values, " ")
}

// isScope says whether s is a scope-token of RFC 6749 section 3.3.
func isScope(s string) bool { return s != "" && isQuotable(s) && !strings.Contains(s, " ") }

// isQuotable says whether s can stand between quotes without being escaped.
func isQuotable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' })
}

var (
	errNoToken   = errors.New("there is no bearer token")
	errTwoTokens = errors.New("there is more than one Authorization header, or a token in the query beside it")
	errMalformed = errors.New("the Authorization header is not Bearer, a space and one token")
)

// scopeError says which scopes are needed, with spaces between them.
type scopeError struct{ reason, scope string }

func newScopeError(function, reason string, scopes []string) *scopeError {
	scope := joined(function, scopes)
	return &scopeError{reason + scope, scope}
}

func (e *scopeError) Error() string { return e.reason }

// authenticationError says how a user has to sign in (RFC 9470).
type authenticationError struct{ reason, acr, maxAge string }

func (e *authenticationError) Error() string { return e.reason }

// scheme is how a token is sent.
type scheme string

const (
	schemeBearer scheme = "Bearer" // RFC 6750 section 2.1
	schemeDPoP   scheme = "DPoP"   // RFC 9449 section 7.1
)

// credentials returns the token of the request, and how it comes.
func (v *Verifier) credentials(r *http.Request) (scheme, string, error) {
	fields := r.Header["Authorization"]
	switch {
	case len(fields) == 0:
		return "", "", errNoToken
	case len(fields) > 1, r.URL.RawQuery != "" && r.URL.Query().Has("access_token"): // section 2: no more than one method
		return "", "", errTwoTokens
	}
	name, token, spaced := strings.Cut(fields[0], " ")
	s := schemeBearer
	switch { // RFC 9110 section 11.1: schemes have no case
	case strings.EqualFold(name, string(schemeBearer)):
	case strings.EqualFold(name, string(schemeDPoP)) && v.origin != "":
		s = schemeDPoP
	default:
		return "", "", errNoToken
	}
	token = strings.TrimLeft(token, " ")
	if !spaced || !isB64Token(token) {
		return "", "", errMalformed
	}
	return s, token, nil
}

// isB64Token says whether s is a b64token of RFC 6750 section 2.1.
func isB64Token(s string) bool {
	s = strings.TrimRight(s, "=")
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("-._~+/", c))
	})
}

// refuse answers for err: status, challenges and problem.
func (v *Verifier) refuse(w http.ResponseWriter, err error) {
	var (
		invalidToken *InvalidTokenError
		wrongProof   *proofError
		insufficient *scopeError
		weak         *authenticationError
	)
	problem := struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Code   string `json:"code,omitempty"` // an error of RFC 6750 section 3.1, RFC 9449 section 7.1 or RFC 9470 section 3
		Detail string `json:"detail,omitempty"`
	}{Type: "about:blank", Status: http.StatusUnauthorized}
	var scope, acr, maxAge string
	switch {
	case errors.Is(err, errNoToken): // RFC 6750 section 3.1: without credentials, the challenge says no more
		problem.Title = "An access token is needed"
	case errors.Is(err, errTwoTokens), errors.Is(err, errMalformed):
		problem.Status, problem.Title = http.StatusBadRequest, "The access token has to come alone and in one piece"
		problem.Code, problem.Detail = "invalid_request", err.Error()
	case errors.As(err, &invalidToken):
		problem.Title, problem.Code, problem.Detail = "The access token is not accepted", "invalid_token", invalidToken.Reason
	case errors.As(err, &wrongProof):
		problem.Title, problem.Code, problem.Detail = "The proof for the access token is not accepted", "invalid_dpop_proof", wrongProof.reason
	case errors.As(err, &insufficient):
		problem.Status, problem.Title = http.StatusForbidden, "The access token does not allow this"
		problem.Code, problem.Detail, scope = "insufficient_scope", insufficient.reason, insufficient.scope
	case errors.As(err, &weak):
		problem.Title, problem.Code, problem.Detail = "The user has to sign in again for this", "insufficient_user_authentication", weak.reason
		acr, maxAge = weak.acr, weak.maxAge
	default: // ErrUnavailable
		problem.Status, problem.Title = http.StatusServiceUnavailable, "Access tokens cannot be checked for the moment"
		w.Header().Set("Retry-After", strconv.Itoa(int(retryDelay/time.Second)))
	}
	if problem.Status != http.StatusServiceUnavailable {
		parameters := []string{
			"realm", v.realm, "error", problem.Code, "error_description", problem.Detail, "scope", scope, "acr_values", acr, "max_age", maxAge, "resource_metadata", v.metadataURL(),
		}
		if wrongProof == nil {
			w.Header().Add("WWW-Authenticate", challenge(schemeBearer, parameters...))
		}
		if v.origin != "" {
			w.Header().Add("WWW-Authenticate", challenge(schemeDPoP, append(parameters, "algs", strings.Join(proofAlgorithms, " "))...))
		}
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(problem.Status)
	json.NewEncoder(w).Encode(problem) // an error here is a client that has left
}

// challenge is one with those of the parameters, name and value in turn, that have a value. No value needs escaping: all are
// constants, or checked by NewVerifier or Require and its kind.
func challenge(s scheme, parameters ...string) string {
	b := []byte(s)
	separator := " "
	for i := 0; i < len(parameters); i += 2 {
		if name, value := parameters[i], parameters[i+1]; value != "" {
			b = fmt.Appendf(b, `%s%s="%s"`, separator, name, value)
			separator = ", "
		}
	}
	return string(b)
}
