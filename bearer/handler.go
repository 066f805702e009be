package bearer

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Handler returns a handler that lets a request with a good token through to next, which finds the token with [FromContext].
//
// The token is taken from the Authorization header alone, never from the query or the body (RFC 9700 section 4.3.2). The other
// requests get, with Cache-Control: no-store and a problem (RFC 9457) as the body,
//
//   - 401 and a challenge without an error, where there is no bearer token
//   - 401 and invalid_token, where it is not good
//   - 400 and invalid_request, where there are two, or the header is not well-formed
//   - 503 and Retry-After, where the issuer's keys cannot be had
//
// The body of the request is not looked at, so a token in a form beside the one in the header goes unnoticed here, and unused.
func (v *Verifier) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := credentials(r)
		var t *Token
		if err == nil {
			t, err = v.Verify(r.Context(), raw)
		}
		if err != nil {
			v.log.DebugContext(r.Context(), "request refused", "method", r.Method, "path", r.URL.Path, "err", err)
			refuse(w, v.realm, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, accepted{t, v.realm})))
	})
}

// RequireScope returns a function that wraps a handler, to be called only with a token that has all the scopes. Others get 403 and
// insufficient_scope, with the scopes that are needed. It goes inside [Verifier.Handler]; outside of one it answers 401 to everything.
//
// It panics without a scope, and for one that is not a scope-token of RFC 6749 section 3.3, as "read write" is not: that would be a guard that
// guards nothing, or lets nobody in.
func RequireScope(scopes ...string) func(http.Handler) http.Handler {
	if len(scopes) == 0 {
		panic("bearer: RequireScope without a scope")
	}
	for _, scope := range scopes {
		if scope == "" || strings.ContainsFunc(scope, func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' }) {
			panic("bearer: RequireScope with " + strconv.Quote(scope) + ", which is not one scope")
		}
	}
	insufficient := &scopeError{strings.Join(scopes, " ")}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a, ok := r.Context().Value(contextKey{}).(accepted)
			if !ok {
				refuse(w, "", errNoToken)
				return
			}
			for _, scope := range scopes {
				if !a.token.HasScope(scope) {
					refuse(w, a.realm, insufficient)
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	}
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
	realm string // for further challenges
}

var (
	errNoToken   = errors.New("there is no bearer token")
	errTwoTokens = errors.New("there is more than one Authorization header, or a token in the query beside it")
	errMalformed = errors.New("the Authorization header is not Bearer, a space and one token")
)

// scopeError says which scopes are needed, with spaces between them.
type scopeError struct{ scope string }

func (e *scopeError) Error() string { return "the token lacks a scope of " + e.scope }

// credentials returns the bearer token of the request (RFC 6750 section 2.1).
func credentials(r *http.Request) (string, error) {
	fields := r.Header["Authorization"]
	switch {
	case len(fields) == 0:
		return "", errNoToken
	case len(fields) > 1, r.URL.RawQuery != "" && r.URL.Query().Has("access_token"): // section 2: no more than one method
		return "", errTwoTokens
	}
	scheme, token, spaced := strings.Cut(fields[0], " ")
	if !strings.EqualFold(scheme, "Bearer") { // RFC 9110 section 11.1: schemes have no case
		return "", errNoToken
	}
	token = strings.TrimLeft(token, " ")
	if !spaced || !isB64Token(token) {
		return "", errMalformed
	}
	return token, nil
}

// isB64Token says whether s is a b64token of RFC 6750 section 2.1.
func isB64Token(s string) bool {
	s = strings.TrimRight(s, "=")
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("-._~+/", c))
	})
}

// refuse answers for err: status, challenge and problem.
func refuse(w http.ResponseWriter, realm string, err error) {
	var (
		invalidToken *InvalidTokenError
		insufficient *scopeError
	)
	problem := struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Code   string `json:"code,omitempty"` // an error of RFC 6750 section 3.1
		Detail string `json:"detail,omitempty"`
	}{Type: "about:blank"}
	var scope string
	switch {
	case errors.Is(err, errNoToken): // section 3.1: without credentials, the challenge says no more
		problem.Status, problem.Title = http.StatusUnauthorized, "An access token is needed"
	case errors.Is(err, errTwoTokens), errors.Is(err, errMalformed):
		problem.Status, problem.Title = http.StatusBadRequest, "The access token has to come alone and in one piece"
		problem.Code, problem.Detail = "invalid_request", err.Error()
	case errors.As(err, &invalidToken):
		problem.Status, problem.Title = http.StatusUnauthorized, "The access token is not accepted"
		problem.Code, problem.Detail = "invalid_token", invalidToken.Reason
	case errors.As(err, &insufficient):
		problem.Status, problem.Title = http.StatusForbidden, "The access token does not allow this"
		problem.Code, problem.Detail = "insufficient_scope", err.Error()
		scope = insufficient.scope
	default: // ErrUnavailable
		problem.Status, problem.Title = http.StatusServiceUnavailable, "Access tokens cannot be checked for the moment"
		w.Header().Set("Retry-After", strconv.Itoa(int(retryDelay/time.Second)))
	}
	if problem.Status != http.StatusServiceUnavailable {
		w.Header().Set("WWW-Authenticate", challenge("realm", realm, "error", problem.Code, "error_description", problem.Detail, "scope", scope))
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(problem.Status)
	json.NewEncoder(w).Encode(problem) // an error here is a client that has left
}

// challenge is a Bearer challenge with those of the parameters, name and value in turn, that have a value. No value needs escaping: all are
// constants, checked by NewVerifier, or by RequireScope.
func challenge(parameters ...string) string {
	b := []byte("Bearer")
	separator := " "
	for i := 0; i < len(parameters); i += 2 {
		if name, value := parameters[i], parameters[i+1]; value != "" {
			b = append(b, separator+name+`="`+value+`"`...)
			separator = ", "
		}
	}
	return string(b)
}
