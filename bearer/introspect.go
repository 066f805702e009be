package bearer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/flight"
	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
)

// Introspection configures token introspection (RFC 7662) for tokens that are
// not JWTs. The response must have active: true and meet the requirements of a
// JWT, except that typ, iss, iat, jti and client_id may be missing.
//
// Every request with an unknown token of this kind causes a request to the
// issuer, even from unauthenticated clients. Limit the request rate in front of
// the API to what the issuer can handle.
type Introspection struct {
	// Endpoint is the issuer's introspection_endpoint: an https URL, or http on
	// a loopback host.
	Endpoint string

	// ClientID and ClientSecret are this API's credentials at the issuer, sent
	// with client_secret_basic (RFC 6749 section 2.3.1).
	ClientID, ClientSecret string

	// CacheFor is how long a response is cached, at most 1 hour and at most
	// until the token expires. A revoked token is accepted for that time. Zero
	// means 30 s. If it is negative, responses are not cached.
	CacheFor time.Duration
}

func (in *Introspection) check(fail func(key string, value any, err error)) {
	if in.Endpoint == "" {
		fail("Introspection.Endpoint", nil, errors.New("missing"))
	} else if _, err := checkURL(in.Endpoint, true); err != nil {
		fail("Introspection.Endpoint", in.Endpoint, err)
	}
	if in.ClientID == "" {
		fail("Introspection.ClientID", nil, errors.New("missing"))
	}
	if in.ClientSecret == "" {
		fail("Introspection.ClientSecret", nil, errors.New("missing"))
	}
	if in.CacheFor > time.Hour {
		fail("Introspection.CacheFor", in.CacheFor, fmt.Errorf("%v is more than 1h", in.CacheFor))
	}
}

// introspector calls the introspection endpoint of an issuer.
type introspector struct {
	endpoint   string
	id, secret string
	cacheFor   time.Duration
	client     *http.Client
	log        *slog.Logger

	known cache[introspected]

	calls flight.Group[[sha256.Size]byte, introspected]
}

// introspected is the result of an introspection: a token, or why it is
// invalid.
type introspected struct {
	token *Token
	err   error
}

func newIntrospector(in Introspection, client *http.Client, log *slog.Logger) *introspector {
	cacheFor := in.CacheFor
	if cacheFor == 0 {
		cacheFor = 30 * time.Second
	}
	client = confined(client)
	// the request has the secret
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &introspector{endpoint: in.Endpoint, id: in.ClientID, secret: in.ClientSecret,
		cacheFor: cacheFor, client: client, log: log}
}

// introspected returns the token that raw refers to.
func (i *issuer) introspected(ctx context.Context, raw string, key [sha256.Size]byte) (*Token, error) {
	in := i.introspect
	result, ok := in.known.get(key)
	if !ok {
		var err error
		result, err = in.calls.Do(ctx, key, fetchTimeout, func(ctx context.Context) (introspected, error) {
			return i.lookup(ctx, raw, key), nil
		})
		if err != nil { // ctx is done
			return nil, unavailable(err)
		}
	}
	if result.err != nil {
		return nil, result.err
	}
	if err := i.checkIntrospected(result.token, time.Now()); err != nil {
		return nil, err
	}
	return result.token, nil
}

// lookup introspects a token and caches the result. Failures are not cached.
func (i *issuer) lookup(ctx context.Context, raw string, key [sha256.Size]byte) (q introspected) {
	in := i.introspect
	q.token, q.err = i.requestIntrospection(ctx, raw)
	if q.err != nil && !isInvalid(q.err) {
		in.log.WarnContext(ctx, "introspection failed", "issuer", i.url, "err", q.err)
	} else if in.cacheFor > 0 {
		now := time.Now()
		until := now.Add(in.cacheFor)
		if q.token != nil && q.token.Expiry.After(now) && q.token.Expiry.Before(until) {
			until = q.token.Expiry
		}
		in.known.put(key, q, until)
	}
	return q
}

// requestIntrospection requests the state of one token (RFC 7662 section 2).
func (i *issuer) requestIntrospection(ctx context.Context, raw string) (*Token, error) {
	in := i.introspect
	form := url.Values{"token": {raw}, "token_type_hint": {"access_token"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, in.endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, unavailable(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.SetBasicAuth(url.QueryEscape(in.id), url.QueryEscape(in.secret))
	resp, err := in.client.Do(req)
	if err != nil {
		return nil, unavailable(err)
	}
	defer resp.Body.Close()
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode != http.StatusOK || kind != "application/json" {
		return nil, unavailable(fmt.Errorf("POST %s: %s with content type %.80q", in.endpoint, resp.Status, kind))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	if err == nil && len(body) > maxResponse {
		err = fmt.Errorf("the response is longer than %d bytes", maxResponse)
	}
	active := ""
	if err == nil {
		err = strictjson.Members(body, []string{"active"}, func(name, value []byte) error {
			if string(name) == "active" {
				active = string(value)
			}
			return nil
		})
	}
	switch {
	case err != nil:
		return nil, unavailable(fmt.Errorf("%s: %w", in.endpoint, err))
	case active == "false":
		return nil, invalid("the token is not active", nil)
	case active != "true":
		return nil, unavailable(fmt.Errorf("%s: active is neither true nor false", in.endpoint))
	}
	t, err := readToken(body, true)
	if err != nil {
		return nil, invalid("the token's claims cannot be read", err)
	}
	if t.Issuer == "" {
		t.Issuer = i.url
	}
	return t, nil
}

// checkIntrospected checks a response like the claims of a JWT, except for
// members that are optional in it (RFC 7662 section 2.2).
func (i *issuer) checkIntrospected(t *Token, now time.Time) error {
	as := *i
	as.anyType = true
	claims := *t
	if claims.Expiry.IsZero() {
		claims.Expiry = now.Add(time.Hour) // it is valid as long as it is active
	}
	return as.checkClaims(&claims, now)
}
