package bearer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/jwks"
)

// A Check is one thing that has to hold of a token, and whether it does.
type Check struct {
	Name string // what is looked at: the name of a claim or header parameter, or "form", "signature", "claims", "kind", "introspection"
	Rule string // what has to hold, in words
	Err  error  // why it does not: an *InvalidTokenError, or one that wraps ErrUnavailable; for a scope another one. Nil if it does
}

// Explain makes the checks of [Verifier.Verify] one by one and returns what came of each, also of those behind one that has failed, as far as they can be made: it is for people who
// wonder about a token. Verify accepts a token if and only if no Check has an Err, but for those of the scopes, which are what [Require] would do. What a token says whose signature has
// not been found right proves nothing.
//
// Of a token that is no JWT, which an issuer is asked about, there is one Check beside those of the scopes.
func (v *Verifier) Explain(ctx context.Context, raw string, scopes ...string) []Check {
	if i := v.introspecting(); i != nil && !looksLikeJWT(raw) {
		t, err := v.Verify(ctx, raw)
		return explainScopes([]Check{{"introspection", "its issuer says that it is good", err}}, t, scopes)
	}
	jws, err := parse(raw)
	all := []Check{{"form", "it is a signed JWT in compact form", err}}
	if err != nil {
		return all
	}
	i, err := v.issuerOf(jws)
	if err != nil {
		return append(all, Check{"iss", "it is of an issuer that is accepted", err})
	}
	if jwks.IsAlgorithm(jws.Algorithm) {
		_, err = i.checkSignature(ctx, jws)
	} else {
		err = invalid("the token's signature is not one of the issuer", errors.New("nobody can tell with such an alg"))
	}
	all = append(all,
		Check{"typ", "it is an access token", i.checkType(jws.Type)},
		Check{"alg", "it is signed in a way that is accepted", i.checkAlgorithm(jws.Algorithm)},
		Check{"signature", "it is signed with a key of the issuer", err},
	)
	t, err := readToken(jws.Payload, i.anyType)
	if err != nil {
		return append(all, Check{"claims", "they can be read in one way only", invalid("the token's claims cannot be read", err)})
	}
	now := time.Now()
	for _, c := range checks {
		var err error
		if reason, why := c.fails(i, t, now); reason != "" {
			err = invalid(reason, errors.New(why))
		}
		all = append(all, Check{c.name, c.rule, err})
	}
	all = append(all, Check{"cnf", "whoever sends it may use it", v.checkUnbound(t)})
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
