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

// Introspection says how to ask an issuer about tokens that are no JWTs (RFC 7662). What it answers has to hold what is asked of a JWT, but for typ, iss, iat, jti and client_id, which may be
// missing; active has to be true.
//
// Whoever sends what is no JWT causes a request to the issuer, unless the same was asked a short while ago. How much of that it bears is for a rate limit before this API to say.
type Introspection struct {
	// Endpoint is the issuer's introspection_endpoint: an https URL, or http on a loopback host.
	Endpoint string

	// ClientID and ClientSecret are what the issuer knows this API by. They are sent by client_secret_basic (RFC 6749 section 2.3.1).
	ClientID, ClientSecret string

	// CacheFor is how long an answer counts, if the token does not expire before. A token that the issuer revokes is accepted for so long.
	// Zero means 30 s; a negative value that each request asks.
	CacheFor time.Duration
}

func (in *Introspection) check() error {
	var errs []error
	if in.Endpoint == "" {
		errs = append(errs, errors.New("the Endpoint is missing"))
	} else if _, err := checkURL(in.Endpoint, true); err != nil {
		errs = append(errs, fmt.Errorf("the Endpoint: %w", err))
	}
	if in.ClientID == "" || in.ClientSecret == "" {
		errs = append(errs, errors.New("ClientID or ClientSecret is missing"))
	}
	if in.CacheFor > time.Hour {
		errs = append(errs, fmt.Errorf("CacheFor: %v is longer than an hour", in.CacheFor))
	}
	return errors.Join(errs...)
}

// introspector asks an issuer about tokens.
type introspector struct {
	endpoint   string
	id, secret string
	cacheFor   time.Duration
	client     *http.Client
	log        *slog.Logger

	known cache[introspected]

	calls flight.Group[[sha256.Size]byte, introspected]
}

// introspected is what an issuer has said of a token: the token, or why it is not good.
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
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // it has the secret
	return &introspector{endpoint: in.Endpoint, id: in.ClientID, secret: in.ClientSecret, cacheFor: cacheFor, client: client, log: log}
}

// introspected returns the token that raw stands for.
func (i *issuer) introspected(ctx context.Context, raw string, key [sha256.Size]byte) (*Token, error) {
	in := i.introspect
	answer, ok := in.known.get(key)
	if !ok {
		var err error
		answer, err = in.calls.Do(ctx, key, fetchTimeout, func(ctx context.Context) (introspected, error) {
			return i.ask(ctx, raw, key), nil
		})
		if err != nil { // of ctx
			return nil, unavailable(err)
		}
	}
	if answer.err != nil {
		return nil, answer.err
	}
	if err := i.checkIntrospected(answer.token, time.Now()); err != nil {
		return nil, err
	}
	return answer.token, nil
}

// ask asks the issuer, and has its answer remembered. What is no answer is not.
func (i *issuer) ask(ctx context.Context, raw string, key [sha256.Size]byte) (q introspected) {
	in := i.introspect
	q.token, q.err = i.answer(ctx, raw)
	if q.err != nil && !isInvalid(q.err) {
		in.log.WarnContext(ctx, "introspection fails", "issuer", i.url, "err", q.err)
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

// answer asks about one token (RFC 7662 section 2).
func (i *issuer) answer(ctx context.Context, raw string) (*Token, error) {
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
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); resp.StatusCode != http.StatusOK || kind != "application/json" {
		return nil, unavailable(fmt.Errorf("%s: it answers %s with %.80q", in.endpoint, resp.Status, kind))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err == nil && len(body) > maxAnswer {
		err = fmt.Errorf("its answer is longer than %d bytes", maxAnswer)
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

// checkIntrospected demands of an answer what is demanded of the claims of a JWT, except for what an issuer need not say (RFC 7662 section 2.2).
func (i *issuer) checkIntrospected(t *Token, now time.Time) error {
	as := *i
	as.anyType = true
	said := *t
	if said.Expiry.IsZero() {
		said.Expiry = now.Add(time.Hour) // it lives while it is active
	}
	return as.checkClaims(&said, now)
}
