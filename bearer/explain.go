package bearer

import (
	"context"
	"errors"
	"time"
)

// A Check is one thing that has to hold of a token, and whether it does.
type Check struct {
	Name string // what is looked at: "signature", or the name of a claim or header parameter
	Rule string // what has to hold, in words
	Err  error  // why it does not: an *InvalidTokenError, or one that wraps ErrUnavailable; nil if it does
}

// Explain makes the checks of [Verifier.Verify] one by one and returns what came of each, also of those behind one that has failed, as far as they can be made: it is for people who
// wonder about a token. Verify accepts a token if and only if no Check has an Err. What a token says whose signature has not been found right proves nothing.
//
// A token that is no JWT, which an issuer is asked about, is one Check.
func (v *Verifier) Explain(ctx context.Context, raw string) []Check {
	if i := v.introspecting(); i != nil && !looksLikeJWT(raw) {
		_, err := v.Verify(ctx, raw)
		return []Check{{"introspection", "its issuer says that it is good", err}}
	}
	jws, h, err := parse(raw)
	all := []Check{{"form", "it is a signed JWT in compact form", err}}
	if err != nil {
		return all
	}
	i, err := v.issuerOf(jws)
	if err != nil {
		return append(all, Check{"iss", "it is of an issuer that is accepted", err})
	}
	if _, known := algorithms[h.alg]; known {
		_, err = i.checkSignature(ctx, h, jws)
	} else {
		err = invalid("the token's signature is not one of the issuer", errors.New("nobody can tell with such an alg"))
	}
	all = append(all,
		Check{"typ", "it is an access token", i.checkType(h.typ)},
		Check{"alg", "it is signed in a way that is accepted", i.checkAlgorithm(h.alg)},
		Check{"signature", "it is signed with a key of the issuer", err},
	)
	t, err := readToken(jws.payload, i.anyType)
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
	return append(all, Check{"cnf", "whoever sends it may use it", v.checkUnbound(t)})
}
