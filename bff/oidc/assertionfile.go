package oidc

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/cloakroom-bff/cloakroom/internal/smallfile"
)

// assertionSkew is how far the clocks of this machine and of the provider may
// differ: an assertion that has only just expired is still sent.
const assertionSkew = time.Minute

// checkAssertionFile verifies what belongs to JWTFile, and that the file has an
// assertion now.
func checkAssertionFile(cfg *Config, fail func(name string, value any, err error)) {
	if typ := cfg.ClientAssertionType; typ != "" && typ != JWTBearer && typ != JWTSPIFFE {
		fail("ClientAssertionType", typ, fmt.Errorf("%q is none of jwt-bearer, jwt-spiffe", typ))
	}
	if cfg.ClientAuth != JWTFile {
		if cfg.ClientAssertionFile != "" {
			fail("ClientAssertionFile", cfg.ClientAssertionFile,
				fmt.Errorf("%s does not use it; jwt_file does", cfg.ClientAuth))
		}
		return
	}
	if cfg.AssertionAudience != "" {
		fail("AssertionAudience", cfg.AssertionAudience,
			errors.New("the JWT of jwt_file has an audience already: set it where that is issued"))
	}
	if cfg.ClientAssertionFile == "" {
		return // reported as missing
	}
	if _, err := readAssertion(cfg.ClientAssertionFile); err != nil {
		fail("ClientAssertionFile", cfg.ClientAssertionFile, err)
	}
}

// readAssertion returns the client assertion in a file. The provider verifies
// it. An error does not quote the file, which may hold another secret.
func readAssertion(file string) (string, error) {
	text, err := smallfile.Read(file)
	if err != nil {
		return "", err
	}
	assertion := strings.TrimSpace(string(text))
	token, err := jwt.ParseSigned(assertion, assertionAlgorithms)
	if err != nil {
		return "", fmt.Errorf("%s has no signed JWT", file)
	}
	var claims jwt.Claims
	if err := token.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return "", fmt.Errorf("the JWT in %s has no valid claims", file)
	}
	if claims.Expiry != nil && time.Since(claims.Expiry.Time()) > assertionSkew {
		return "", fmt.Errorf("the JWT in %s expired at %s; what writes this file must renew it",
			file, claims.Expiry.Time().UTC().Format(time.RFC3339))
	}
	return assertion, nil
}

// assertionAlgorithms are those with a public key.
var assertionAlgorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}
