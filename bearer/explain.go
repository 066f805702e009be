package bearer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/jwks"
)

// Check is one requirement of a token and whether the token meets it.
type Check struct {
	// Name is the name of a claim or header parameter, or one of "form",
	// "signature", "claims", "kind" and "introspection".
	Name string
	// Rule is the requirement in words.
	Rule string
	// Err is nil if the token meets the requirement. Otherwise it is an
	// [*InvalidTokenError], wraps [ErrUnavailable], or describes a missing
	// scope.
	Err error
}

// Explain runs the checks of [Verifier.Verify] and returns the result of each.
// It continues after a failed check as far as possible, so that a person can
// see everything that is wrong with a token. Checks that Verify does not make
// of this token are left out. It also checks scopes, as [Require] would. Verify
// accepts a token if and only if no Check but those of scopes has an Err.
// Claims of a token with an invalid signature prove nothing.
//
// For a token that needs introspection there is one Check, followed by those of
// scopes.
func (v *Verifier) Explain(ctx context.Context, raw string, scopes ...string) []Check {
	if i := v.introspecting(); i != nil && !looksLikeJWT(raw) {
		t, err := v.Verify(ctx, raw)
		return explainScopes([]Check{{"introspection", "the issuer reports that it is active", err}}, t, scopes)
	}
	jws, err := parse(raw)
	all := []Check{{"form", "it is a signed JWT in compact form", err}}
	if err != nil {
		return all
	}
	i, err := v.issuerOf(jws)
	if err != nil {
		return append(all, Check{"iss", "its issuer is accepted", err})
	}
	if jwks.IsAlgorithm(jws.Algorithm) {
		_, err = i.checkSignature(ctx, jws)
	} else {
		err = invalid("the token's signature is not valid", errors.New("alg is not an asymmetric signature algorithm"))
	}
	all = append(all,
		Check{"typ", "it is an access token", i.checkType(jws.Type)},
		Check{"alg", "its algorithm is accepted", i.checkAlgorithm(jws.Algorithm)},
		Check{"signature", "it is signed with a key of the issuer", err},
	)
	t, err := readToken(jws.Payload, i.anyType)
	if err != nil {
		return append(all, Check{"claims", "they are unambiguous", invalid("the token's claims cannot be read", err)})
	}
	now := time.Now()
	for _, c := range checks {
		if !c.applies(i, t) {
			continue
		}
		var err error
		if reason, detail := c.fails(i, t, now); reason != "" {
			err = invalid(reason, errors.New(detail))
		}
		all = append(all, Check{c.name, c.rule, err})
	}
	all = append(all, Check{"cnf", "it can be used as a bearer token", v.checkUnbound(t)})
	return explainScopes(all, t, scopes)
}

func explainScopes(all []Check, t *Token, scopes []string) []Check {
	if t == nil {
		return all
	}
	for _, scope := range scopes {
		var err error
		if !t.HasScope(scope) {
			err = &scopeError{fmt.Sprintf("the token does not allow %s: it has %s", scope, shorten(t.Scopes)), scope}
		}
		all = append(all, Check{"scope", "it allows " + scope, err})
	}
	return all
}
