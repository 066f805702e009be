package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/jwx/v3/jwk"
	jwxjwt "github.com/lestrrat-go/jwx/v3/jwt"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

// What an API wants to know of a token, from whichever system.
type verified struct{ subject, scope string }

// A verify function reports whether a token is good.
type verify func(ctx context.Context, raw string) (verified, error)

// system is something that verifies tokens. Each is asked to check signature,
// algorithm, iss, aud and exp, and to tell sub and scope.
type system struct {
	name string
	// begin returns a verifier that has fetched the issuer's keys.
	begin func(ctx context.Context, iss *issuer) (verify, error)
}

const ours = "**bearer**"

var systems = []system{
	{"go-oidc", beginOIDC},
	{"lestrrat-go/jwx", beginJWX},
	{"golang-jwt with keyfunc", beginGolangJWT},
	{ours, beginBearer},
}

// beginBearer makes a verifier that has seen no token but one, of which it has
// the keys.
func beginBearer(ctx context.Context, iss *issuer) (verify, error) {
	v, err := bearer.NewVerifier(bearer.Config{Issuer: iss.url, Audience: audience,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	if _, err := v.Verify(ctx, iss.first); err != nil {
		return nil, err
	}
	return func(ctx context.Context, raw string) (verified, error) {
		t, err := v.Verify(ctx, raw)
		if err != nil {
			return verified{}, err
		}
		return verified{t.Subject, strings.Join(t.Scopes, " ")}, nil
	}, nil
}

func beginOIDC(ctx context.Context, iss *issuer) (verify, error) {
	keys := oidc.NewRemoteKeySet(ctx, iss.url+"/keys")
	v := oidc.NewVerifier(iss.url, keys, &oidc.Config{ClientID: audience, SupportedSigningAlgs: algorithms})
	if _, err := v.Verify(ctx, iss.first); err != nil {
		return nil, err
	}
	return func(ctx context.Context, raw string) (verified, error) {
		t, err := v.Verify(ctx, raw)
		if err != nil {
			return verified{}, err
		}
		var claims struct {
			Scope string `json:"scope"`
		}
		if err := t.Claims(&claims); err != nil {
			return verified{}, err
		}
		return verified{t.Subject, claims.Scope}, nil
	}, nil
}

func beginJWX(ctx context.Context, iss *issuer) (verify, error) {
	keys, err := jwk.Fetch(ctx, iss.url+"/keys")
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, raw string) (verified, error) {
		t, err := jwxjwt.ParseString(raw, jwxjwt.WithKeySet(keys), jwxjwt.WithIssuer(iss.url),
			jwxjwt.WithAudience(audience), jwxjwt.WithRequiredClaim("exp"))
		if err != nil {
			return verified{}, err
		}
		subject, _ := t.Subject()
		var scope string
		if err := t.Get("scope", &scope); err != nil {
			return verified{}, err
		}
		return verified{subject, scope}, nil
	}, nil
}

func beginGolangJWT(ctx context.Context, iss *issuer) (verify, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, iss.url+"/keys", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	set, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	keys, err := keyfunc.NewJWKSetJSON(json.RawMessage(set))
	if err != nil {
		return nil, err
	}
	parser := jwt.NewParser(jwt.WithValidMethods(algorithms), jwt.WithIssuer(iss.url), jwt.WithAudience(audience),
		jwt.WithExpirationRequired())
	type claims struct {
		jwt.RegisteredClaims
		Scope string `json:"scope"`
	}
	return func(_ context.Context, raw string) (verified, error) {
		var c claims
		t, err := parser.ParseWithClaims(raw, &c, keys.Keyfunc)
		if err != nil {
			return verified{}, err
		}
		if !t.Valid {
			return verified{}, errors.New("not valid")
		}
		return verified{c.Subject, c.Scope}, nil
	}, nil
}

// check has a system accept a good token, and refuse one that is expired, for
// another API, or of another key.
func check(ctx context.Context, s system, iss *issuer, alg string) error {
	v, err := s.begin(ctx, iss)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	if got, err := v(ctx, iss.token(alg, small, nil)); err != nil || got != (verified{"alice", scope}) {
		return fmt.Errorf("%s, %s: a good token: %v, %w", s.name, alg, got, err)
	}
	other := newIssuer()
	defer other.close()
	forged := other.token(alg, small, map[string]any{"iss": iss.url})
	for what, raw := range map[string]string{
		"expired":         iss.token(alg, small, map[string]any{"exp": 1000}),
		"for another API": iss.token(alg, small, map[string]any{"aud": "invoices"}),
		"forged":          forged,
	} {
		if _, err := v(ctx, raw); err == nil {
			return fmt.Errorf("%s, %s: takes a token that is %s", s.name, alg, what)
		}
	}
	return nil
}
