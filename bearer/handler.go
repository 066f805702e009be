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

// Handler returns a handler that calls next for requests with a valid token.
// next gets the token from [FromContext].
//
// The token is read from the Authorization header only, never from the query or
// the body (RFC 9700 section 4.3.2). Other requests get Cache-Control:
// no-store, a problem (RFC 9457) and
//
//   - 401 and a challenge without an error if there is no token
//   - 401 and invalid_token if the token is invalid, or invalid_dpop_proof if
//     its proof is
//   - 400 and invalid_request if there are two tokens or the header is
//     malformed
//   - 503 and Retry-After if the issuer's keys are not available
//
// The request body is not read. A second token in a form is ignored.
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

// FromContext returns the token of a request's context. ok is false outside of
// [Verifier.Handler].
func FromContext(ctx context.Context) (token *Token, ok bool) {
	a, ok := ctx.Value(contextKey{}).(accepted)
	return a.token, ok
}

type contextKey struct{}

// accepted is the value of contextKey.
type accepted struct {
	token *Token
	by    *Verifier // makes the challenges of Require and the like
}

// Require returns middleware that calls the handler only if the token has all
// scopes. Other requests get 403 and insufficient_scope with the required
// scopes. Use it inside [Verifier.Handler], like the other Require functions.
// Outside, it rejects every request with 401.
//
// Require panics without scopes, since such a guard would protect nothing. It
// also panics if one is not a scope-token of RFC 6749 section 3.3, such as
// "read write", since no token could have it.
func Require(scopes ...string) func(http.Handler) http.Handler {
	insufficient := newScopeError("Require", "the token lacks a required scope: ", scopes)
	return guard(func(_ *Verifier, t *Token) error {
		for _, scope := range scopes {
			if !t.HasScope(scope) {
				return insufficient
			}
		}
		return nil
	})
}

// RequireAny is like [Require], for tokens that have at least one of the
// scopes.
func RequireAny(scopes ...string) func(http.Handler) http.Handler {
	insufficient := newScopeError("RequireAny", "the token has none of the scopes ", scopes)
	return guard(func(_ *Verifier, t *Token) error {
		if !slices.ContainsFunc(scopes, t.HasScope) {
			return insufficient
		}
		return nil
	})
}

// RequireACR returns middleware that calls the handler only if the token's acr
// is one of values: the user has signed in by one of these methods. Other
// requests get 401 and insufficient_user_authentication with the values, best
// first, so that the client can have the user sign in as required (RFC 9470
// section 3).
//
// RequireACR panics without values, and if one has characters that Require
// would not accept in a scope.
func RequireACR(values ...string) func(http.Handler) http.Handler {
	demand := &authenticationError{reason: "the user must sign in with another method",
		acr: joinValues("RequireACR", values)}
	return guard(func(_ *Verifier, t *Token) error {
		if !slices.Contains(values, t.ACR) {
			return demand
		}
		return nil
	})
}

// RequireFresh returns middleware that calls the handler only if the user has
// signed in within maxAge, according to auth_time. Fractions of a second are
// dropped. Other requests get 401 and insufficient_user_authentication with
// max_age (RFC 9470 section 3). Config.Leeway is added, which also covers the
// time between sign-in and request. RequireFresh panics if maxAge is negative.
func RequireFresh(maxAge time.Duration) func(http.Handler) http.Handler {
	if maxAge < 0 {
		panic("bearer: RequireFresh with " + maxAge.String())
	}
	maxAge = maxAge.Truncate(time.Second)
	demand := &authenticationError{reason: "the user signed in too long ago",
		maxAge: strconv.Itoa(int(maxAge / time.Second))}
	return guard(func(v *Verifier, t *Token) error {
		age, leeway := time.Since(t.AuthTime), v.leeway(t)
		if t.AuthTime.IsZero() || age < -leeway || age > maxAge+leeway {
			return demand
		}
		return nil
	})
}

// guard returns middleware that calls check for each valid token.
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

// joinValues joins values for a challenge with spaces. It panics if a value is
// not usable there.
func joinValues(function string, values []string) string {
	if len(values) == 0 {
		panic("bearer: " + function + " without a value")
	}
	for _, value := range values {
		if !isScope(value) {
			panic("bearer: " + function + " with " + strconv.Quote(value) + ", which is not a single value")
		}
	}
	return strings.Join(values, " ")
}

// isScope reports whether s is a scope-token of RFC 6749 section 3.3.
func isScope(s string) bool { return s != "" && isQuotable(s) && !strings.Contains(s, " ") }

// isQuotable reports whether s can be quoted without escapes.
func isQuotable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' })
}

var (
	errNoToken   = errors.New("no access token")
	errTwoTokens = errors.New("there is more than one Authorization header or token")
	errMalformed = errors.New("the Authorization header is not a scheme, a space and one token")
)

// scopeError reports missing scopes.
type scopeError struct {
	reason string
	scope  string // separated by spaces
}

func newScopeError(function, reason string, scopes []string) *scopeError {
	scope := joinValues(function, scopes)
	return &scopeError{reason + scope, scope}
}

func (e *scopeError) Error() string { return e.reason }

// authenticationError reports that the user must sign in again, and how (RFC
// 9470).
type authenticationError struct{ reason, acr, maxAge string }

func (e *authenticationError) Error() string { return e.reason }

// scheme is an authentication scheme of the Authorization header.
type scheme string

const (
	schemeBearer scheme = "Bearer" // RFC 6750 section 2.1
	schemeDPoP   scheme = "DPoP"   // RFC 9449 section 7.1
)

// credentials returns the token of a request and its scheme.
func (v *Verifier) credentials(r *http.Request) (scheme, string, error) {
	fields := r.Header["Authorization"]
	switch {
	case len(fields) == 0:
		return "", "", errNoToken
	// section 2: no more than one method
	case len(fields) > 1, r.URL.RawQuery != "" && r.URL.Query().Has("access_token"):
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

// isB64Token reports whether s is a b64token of RFC 6750 section 2.1.
func isB64Token(s string) bool {
	s = strings.TrimRight(s, "=")
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
			strings.ContainsRune("-._~+/", c))
	})
}

// refuse writes the status, challenges and problem for err.
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
		// an error of RFC 6750 section 3.1, RFC 9449 section 7.1 or RFC 9470
		// section 3
		Code   string `json:"code,omitempty"`
		Detail string `json:"detail,omitempty"`
	}{Type: "about:blank", Status: http.StatusUnauthorized}
	var scope, acr, maxAge string
	switch {
	case errors.Is(err, errNoToken): // RFC 6750 section 3.1: without credentials, the challenge says no more
		problem.Title = "Access token required"
	case errors.Is(err, errTwoTokens), errors.Is(err, errMalformed):
		problem.Status, problem.Title = http.StatusBadRequest, "Malformed credentials"
		problem.Code, problem.Detail = "invalid_request", err.Error()
	case errors.As(err, &invalidToken):
		problem.Title, problem.Code, problem.Detail = "Invalid access token", "invalid_token", invalidToken.Reason
	case errors.As(err, &wrongProof):
		problem.Title, problem.Code, problem.Detail = "Invalid DPoP proof", "invalid_dpop_proof", wrongProof.reason
	case errors.As(err, &insufficient):
		problem.Status, problem.Title = http.StatusForbidden, "Insufficient scope"
		problem.Code, problem.Detail, scope = "insufficient_scope", insufficient.reason, insufficient.scope
	case errors.As(err, &weak):
		problem.Title, problem.Code, problem.Detail = "Sign in again", "insufficient_user_authentication", weak.reason
		acr, maxAge = weak.acr, weak.maxAge
	default: // ErrUnavailable
		problem.Status, problem.Title = http.StatusServiceUnavailable, "Access tokens cannot be verified right now"
		w.Header().Set("Retry-After", strconv.Itoa(int(retryDelay/time.Second)))
	}
	if problem.Status != http.StatusServiceUnavailable {
		parameters := []string{
			"realm", v.realm, "error", problem.Code, "error_description", problem.Detail, "scope",
			scope, "acr_values", acr, "max_age", maxAge, "resource_metadata", v.metadataURL(),
		}
		if wrongProof == nil {
			w.Header().Add("WWW-Authenticate", challenge(schemeBearer, parameters...))
		}
		if v.origin != "" {
			w.Header().Add("WWW-Authenticate",
				challenge(schemeDPoP, append(parameters, "algs", strings.Join(proofAlgorithms, " "))...))
		}
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(problem.Status)
	json.NewEncoder(w).Encode(problem) // an error means that the client is gone
}

// challenge formats a challenge with the parameters, name and value in turn,
// whose value is not empty. No value needs escaping: all are constants, or were
// checked by NewVerifier or a Require function.
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
