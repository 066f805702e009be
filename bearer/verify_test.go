package bearer_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

func TestTokenFields(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	v := newIssuer(rsaKey().jwk()).verifier(t)
	token := wantGood(t, v,
		rsaKey().token(object{"aud": []string{"other", audience}, "tenant": "acme"}), "a good token")
	for _, field := range []struct{ name, got, want string }{
		{"Issuer", token.Issuer, issuerURL},
		{"Subject", token.Subject, "alice"},
		{"ClientID", token.ClientID, "spa"},
		{"ID", token.ID, "token-1"},
		{"Audience", strings.Join(token.Audience, " "), "other " + audience},
		{"Scopes", strings.Join(token.Scopes, " "), "orders:read orders:write"},
	} {
		if field.got != field.want {
			t.Errorf("%s: got %q, want %q", field.name, field.got, field.want)
		}
	}
	if token.IssuedAt.Before(now) || token.Expiry.Sub(token.IssuedAt) != 5*time.Minute {
		t.Errorf("got issued at %v, expiry %v, want five minutes from now on", token.IssuedAt, token.Expiry)
	}
	var own struct {
		Tenant string `json:"tenant"`
	}
	if err := token.Claims.Decode(&own); err != nil || own.Tenant != "acme" {
		t.Errorf("got %+v, %v, want the tenant acme", own, err)
	}
}

// Tokens and keys are made by another JOSE library.
func TestAlgorithms(t *testing.T) {
	p384, p521 := newEC("p384", "ES384", elliptic.P384()), newEC("p521", "ES512", elliptic.P521())
	all := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	iss := newIssuer(rsaKey().jwk(), ecKey().jwk(), p384.jwk(), p521.jwk(), ed25519Key().jwk())
	v := iss.verifier(t, func(c *bearer.Config) { c.Algorithms = all })
	for _, alg := range all {
		t.Run(alg, func(t *testing.T) {
			key := map[string]*signer{"R": rsaKey(), "P": rsaKey(), "ES256": ecKey(), "ES384": p384,
				"ES512": p521, "EdDSA": ed25519Key()}
			s := key[alg]
			if s == nil {
				s = key[alg[:1]]
			}
			signing, err := jose.NewSigner(
				jose.SigningKey{Algorithm: jose.SignatureAlgorithm(alg),
					Key: jose.JSONWebKey{Key: s.private, KeyID: s.kid}},
				new(jose.SignerOptions).WithType("at+jwt"))
			if err != nil {
				t.Fatal(err)
			}
			signed, err := signing.Sign(must(json.Marshal(claims())))
			if err != nil {
				t.Fatal(err)
			}
			wantGood(t, v, must(signed.CompactSerialize()), alg)
		})
	}
}

func TestVerifyAccepts(t *testing.T) {
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	for _, test := range []struct {
		name string
		raw  string
	}{
		{"typ with application/", ecKey().tokenWithHeader(object{"typ": "application/at+jwt"})},
		{"typ in another case, as media types go", ecKey().tokenWithHeader(object{"typ": "AT+JWT"})},
		{"exp within the leeway", ecKey().token(object{"exp": in(-5 * time.Second)})},
		{"nbf within the leeway", ecKey().token(object{"nbf": in(20 * time.Second)})},
		{"iat within the leeway", ecKey().token(object{"iat": in(20 * time.Second)})},
		{"a date with a fraction", ecKey().token(object{"exp": float64(in(time.Minute)) + 0.5})},
		{"no scope", ecKey().token(object{"scope": nil})},
		{"unknown claims, nested and empty",
			ecKey().token(object{"a": object{}, "b": []any{},
				"c": object{"sub": []any{object{"sub": "x"}, `}"],`}}, "": "", "d": false})},
		{"a claim with escapes",
			ecKey().sign(headerOf(ecKey()),
				[]byte(strings.Replace(string(must(json.Marshal(claims()))), `"sub":"alice"`,
					"\n\t \"s\\u0075b\" :\r\n\"\\u0061lice\" ", 1)))},
		{"Ed25519 under its old name", ed25519Key().token()},
		{"Ed25519 under its new name", ed25519Key().tokenWithHeader(object{"alg": "Ed25519"})},
		{"a header that says more", ecKey().tokenWithHeader(object{"cty": "x", "x": object{"y": 1}})},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newIssuer(ecKey().jwk(), ed25519Key().jwk()).verifier(t)
			if token := wantGood(t, v, test.raw, test.name); token.Subject != "alice" {
				t.Errorf("got the subject %q, want alice", token.Subject)
			}
		})
	}
}

func headerOf(s *signer) []byte {
	return []byte(fmt.Sprintf(`{"typ":"at+jwt","alg":%q,"kid":%q}`, s.alg, s.kid))
}

func TestVerifyRejects(t *testing.T) {
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	rs, ec := rsaKey(), ecKey()
	good := ec.token()
	parts := strings.Split(good, ".")
	payload := func(text string) string { return ec.sign(headerOf(ec), []byte(text)) }
	withHeader := func(text string) string { return ec.sign([]byte(text), must(json.Marshal(claims()))) }
	with := func(name, member string) string { // a claim in a spelling of its own beside the good ones
		all := string(must(json.Marshal(claims(object{name: nil}))))
		return payload(strings.TrimSuffix(all, "}") + "," + member + "}")
	}
	signedBy := func(header object, signature func(input []byte) []byte) string {
		input := ec.tokenWithHeader(header)
		input = input[:strings.LastIndexByte(input, '.')]
		return input + "." + base64.RawURLEncoding.EncodeToString(signature([]byte(input)))
	}
	saltedBy := func(length int) string {
		input := rs.tokenWithHeader(object{"alg": "PS256"})
		input = input[:strings.LastIndexByte(input, '.')]
		digest := sha256.Sum256([]byte(input))
		signature := must(rs.private.Sign(rand.Reader, digest[:],
			&rsa.PSSOptions{SaltLength: length, Hash: crypto.SHA256}))
		return input + "." + base64.RawURLEncoding.EncodeToString(signature)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY",
		Bytes: must(x509.MarshalPKIXPublicKey(rs.private.Public()))})

	for _, test := range []struct {
		name   string
		raw    string
		reason string
	}{
		// RFC 9068 section 4: typ
		{"typ JWT, as ID tokens have it", ec.tokenWithHeader(object{"typ": "JWT"}), badType},
		{"no typ", ec.tokenWithHeader(object{"typ": nil}), badType},
		{"an empty typ", ec.tokenWithHeader(object{"typ": ""}), badType},
		{"a logout token", ec.tokenWithHeader(object{"typ": "logout+jwt"}), badType},
		{"a DPoP proof", ec.tokenWithHeader(object{"typ": "dpop+jwt"}), badType},
		{"typ that begins like the right one", ec.tokenWithHeader(object{"typ": "at+jwt2"}), badType},
		{"typ that ends like the right one", ec.tokenWithHeader(object{"typ": "text/at+jwt"}), badType},

		// RFC 9068 section 4, RFC 8725 section 3.8: iss
		{"another issuer", ec.token(object{"iss": "https://evil.example"}), otherIssuer},
		{"the issuer with a slash", ec.token(object{"iss": issuerURL + "/"}), otherIssuer},
		{"the issuer in another case", ec.token(object{"iss": "https://ID.example"}), otherIssuer},
		{"no iss", ec.token(object{"iss": nil}), otherIssuer},
		{"iss as an array", ec.token(object{"iss": []string{issuerURL}}), badClaims},
		{"a key of another issuer under the same kid", otherEC().token(), badSignature},

		// RFC 9068 section 4, RFC 8725 section 3.9: aud
		{"another audience", ec.token(object{"aud": "invoices"}), otherAudience},
		{"other audiences", ec.token(object{"aud": []string{"invoices", "spa"}}), otherAudience},
		{"no aud", ec.token(object{"aud": nil}), otherAudience},
		{"an empty array for aud", ec.token(object{"aud": []string{}}), otherAudience},
		{"an audience that ours begins with", ec.token(object{"aud": "order"}), otherAudience},
		{"an audience that begins with ours", ec.token(object{"aud": "orders2"}), otherAudience},
		{"ours as a part of one", ec.token(object{"aud": "x orders y"}), otherAudience},
		{"aud as a number", ec.token(object{"aud": 1}), badClaims},
		{"aud null", with("aud", `"aud":null`), badClaims},
		{"aud with a number beside ours", with("aud", `"aud":["orders",1]`), badClaims},
		{"aud as an object", with("aud", `"aud":{"orders":"orders"}`), badClaims},

		// RFC 9068 section 4: exp, nbf and iat
		{"expired", ec.token(object{"exp": in(-31 * time.Second)}), expired},
		{"expired in 1970", ec.token(object{"exp": 0}), expired},
		{"no exp", ec.token(object{"exp": nil}), lacksClaim},
		{"exp as a string", ec.token(object{"exp": fmt.Sprint(in(time.Minute))}), badClaims},
		{"exp null", with("exp", `"exp":null`), badClaims},
		{"exp beyond all time", with("exp", `"exp":1e300`), badClaims},
		{"exp before all time", with("exp", `"exp":-1`), badClaims},
		{"nbf ahead", ec.token(object{"nbf": in(90 * time.Second)}), notYet},
		{"nbf as a string", ec.token(object{"nbf": "soon"}), badClaims},
		{"iat far ahead", ec.token(object{"iat": in(time.Hour), "exp": in(2 * time.Hour)}), notYet},

		// RFC 9068 section 2.2: required claims
		{"no sub", ec.token(object{"sub": nil}), lacksClaim},
		{"an empty sub", ec.token(object{"sub": ""}), lacksClaim},
		{"sub as a number", ec.token(object{"sub": 7}), badClaims},
		{"no client_id", ec.token(object{"client_id": nil, "azp": "spa"}), lacksClaim},
		{"no iat", ec.token(object{"iat": nil}), lacksClaim},
		{"no jti", ec.token(object{"jti": nil}), lacksClaim},
		{"an empty jti", ec.token(object{"jti": ""}), lacksClaim},
		{"scope as a number", ec.token(object{"scope": 7}), badClaims},
		{"scope as an array with a number", ec.token(object{"scope": []any{"orders:read", 7}}), badClaims},

		// RFC 8725 sections 2.1, 3.1 and 3.2: alg
		{"alg none", signedBy(object{"alg": "none"}, func([]byte) []byte { return nil }), badAlgorithm},
		{"alg nOnE", signedBy(object{"alg": "nOnE"}, func([]byte) []byte { return nil }), badAlgorithm},
		{"alg none with a good signature", ec.tokenWithHeader(object{"alg": "none"}), badAlgorithm},
		{"alg es256", ec.tokenWithHeader(object{"alg": "es256"}), badAlgorithm},
		{"no alg", ec.tokenWithHeader(object{"alg": nil}), badAlgorithm},
		{"an alg that is not on the list", ec.tokenWithHeader(object{"alg": "ES384"}), badAlgorithm},
		{"alg with a space", ec.tokenWithHeader(object{"alg": "ES256 "}), badAlgorithm},
		{"alg as an array", ec.tokenWithHeader(object{"alg": []string{"ES256"}}), badHeader},
		{"HMAC with the public key for a secret",
			signedBy(object{"alg": "HS256", "kid": "rsa"}, func(input []byte) []byte {
				mac := hmac.New(sha256.New, publicPEM)
				mac.Write(input)
				return mac.Sum(nil)
			}), badAlgorithm},
		{"ES256 by an RSA key", ec.tokenWithHeader(object{"kid": "rsa"}), badSignature},
		{"RS256 by an EC key", rs.tokenWithHeader(object{"kid": "ec"}), badSignature},
		{"RS256 where PS256 is said", rs.tokenWithHeader(object{"alg": "PS256"}), badSignature},
		{"EdDSA by an EC key", ec.tokenWithHeader(object{"alg": "EdDSA"}), badSignature},
		{"PS256 by a key for RS256", (&signer{"rs256", "PS256", rs.private}).token(), badSignature},

		// RFC 7515 section 4.1.11: extensions
		{"crit", ec.tokenWithHeader(object{"crit": []string{"x"}, "x": 1}), badHeader},
		{"crit that names what is known", ec.tokenWithHeader(object{"crit": []string{"alg"}}), badHeader},
		{"an empty crit", ec.tokenWithHeader(object{"crit": []string{}}), badHeader},
		{"b64 false", ec.tokenWithHeader(object{"b64": false, "crit": []string{"b64"}}), badHeader},
		{"b64 false without crit", ec.tokenWithHeader(object{"b64": false}), badHeader},
		{"zip", ec.tokenWithHeader(object{"zip": "DEF"}), badHeader},
		{"enc", ec.tokenWithHeader(object{"enc": "A256GCM"}), badHeader},

		// RFC 8725bis section 3.14: compact serialization only
		{"nothing", "", notCompact},
		{"a space before", " " + good, notCompact},
		{"a space behind", good + " ", notCompact},
		{"a line break behind", good + "\n", notCompact},
		{"a carriage return within", parts[0] + ".\r" + parts[1] + "." + parts[2], notCompact},
		{"a line break within", parts[0] + ".\r\n" + parts[1] + "." + parts[2], notCompact},
		{"padding", good + "==", notCompact},
		{"padding of the payload", parts[0] + "." + parts[1] + "=." + parts[2], notCompact},
		{"a dot behind", good + ".", notCompact},
		{"a dot before", "." + good, notCompact},
		{"two parts", parts[0] + "." + parts[1], notCompact},
		{"one part", parts[0], notCompact},
		{"no header", "." + parts[1] + "." + parts[2], badHeader},
		{"the other base64 alphabet", ec.token(object{"x": "???>>>"})[:10] + "+/" + good[12:], notCompact},
		{"JSON serialization",
			fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, parts[0], parts[1], parts[2]), notCompact},
		{"an encrypted token", strings.Repeat(parts[0]+".", 4) + parts[2], notCompact},
		{"no reference token", "2YotnFZFEjr1zCsicMWpAA", notCompact},
		{"too long a token", ec.token(object{"x": strings.Repeat("x", 16<<10)}), notCompact},

		// RFC 7515 section 5.2, RFC 7519 section 4: what JSON readers disagree
		// about
		{"a claim twice", with("sub", `"sub":"alice","sub":"bob"`), badClaims},
		{"a claim in two cases", with("sub", `"sub":"alice","SUB":"bob"`), badClaims},
		{"a claim in two cases beyond ASCII", with("sub", `"sub":"alice","ſub":"bob"`), badClaims},
		{"a claim twice, once escaped", with("sub", `"sub":"alice","s\u0075b":"bob"`), badClaims},
		{"a claim in another case", ec.token(object{"scope": nil, "Scope": "orders:read"}), badClaims},
		{"an unknown claim twice", with("sub", `"sub":"alice","x":1,"x":2`), badClaims},
		{"a header parameter twice", withHeader(`{"typ":"at+jwt","alg":"ES256","kid":"ec","alg":"none"}`), badHeader},
		{"a header parameter in two cases",
			withHeader(`{"typ":"at+jwt","alg":"ES256","Alg":"none","kid":"ec"}`), badHeader},
		{"a header in another case", withHeader(`{"typ":"at+jwt","ALG":"ES256","kid":"ec"}`), badAlgorithm},
		{"too many header parameters", withHeader(manyMembers(1000)), badHeader},
		{"a header that is no JSON", withHeader(`alg`), badHeader},
		{"a header that is no object", withHeader(`["ES256"]`), badHeader},
		{"a header with something behind", withHeader(string(headerOf(ec)) + "{}"), badHeader},
		{"a header of spaces", withHeader(`  `), badHeader},
		{"claims that are no JSON", payload(`{"sub":`), badClaims},
		{"claims that are no object", payload(`"alice"`), badClaims},
		{"no claims", payload(`{}`), otherIssuer},
		{"claims that are not UTF-8", with("sub", "\"sub\":\"alice\xff\""), badClaims},

		// RFC 8725 section 3.10: kid is only a name
		{"a kid that is a path", ec.tokenWithHeader(object{"kid": "../../../../dev/null"}), badSignature},
		{"a kid that is SQL", ec.tokenWithHeader(object{"kid": "' OR '1'='1"}), badSignature},
		{"a kid with line breaks", ec.tokenWithHeader(object{"kid": "ec\r\nlevel=ERROR msg=forged"}), badSignature},
		{"a kid of 10 KB", ec.tokenWithHeader(object{"kid": strings.Repeat("k", 10<<10)}), badSignature},
		{"kid as a number", ec.tokenWithHeader(object{"kid": 1}), badHeader},
		{"no kid where two keys fit", rs.tokenWithHeader(object{"kid": nil}), badSignature},

		// RFC 7518 section 3.4: ECDSA signatures
		{"a changed signature", good[:len(good)-6] + "AAAAAA", badSignature},
		{"another payload",
			parts[0] + "." +
				base64.RawURLEncoding.EncodeToString(must(json.Marshal(claims(object{"sub": "bob"})))) +
				"." + parts[2], badSignature},
		{"no signature", parts[0] + "." + parts[1] + ".", badSignature},
		{"r and s are zero", signedBy(nil, func([]byte) []byte { return make([]byte, 64) }), badSignature},
		{"s is zero", signedBy(nil,
			func(in []byte) []byte { return append(ec.signature(in)[:32], make([]byte, 32)...) }), badSignature},
		{"r and s are the order", signedBy(nil, func([]byte) []byte {
			n := elliptic.P256().Params().N.Bytes()
			return append(n, n...)
		}), badSignature},
		{"a signature that is short of a byte",
			signedBy(nil, func(in []byte) []byte { return ec.signature(in)[:63] }), badSignature},
		{"a signature with a byte more",
			signedBy(nil, func(in []byte) []byte { return append(ec.signature(in), 0) }), badSignature},
		{"a signature with zeros before r and s", signedBy(nil, func(in []byte) []byte {
			s := ec.signature(in)
			return slices.Concat(make([]byte, 2), s[:32], make([]byte, 2), s[32:])
		}), badSignature},
		{"a signature with a zero before s", signedBy(nil, func(in []byte) []byte {
			s := ec.signature(in)
			return slices.Concat(s[:32], make([]byte, 1), s[32:])
		}), badSignature},
		{"a signature in DER", signedBy(nil, func(in []byte) []byte {
			digest := sha256.Sum256(in)
			return must(ec.private.Sign(nil, digest[:], crypto.SHA256))
		}), badSignature},

		// RFC 7518 section 3.5: PSS
		{"a salt that is shorter than the hash", saltedBy(20), badSignature},

		// RFC 9449 section 7.2, RFC 8705 section 3: bound tokens
		{"bound to a DPoP key",
			ec.token(object{"cnf": object{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}), boundToKey},
		{"bound to a certificate",
			ec.token(object{"cnf": object{"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}}), boundToKey},
	} {
		t.Run(test.name, func(t *testing.T) {
			same := object{"alg": "RS256", "kid": "rs256"}
			v := newIssuer(rs.jwk(), ec.jwk(), ed25519Key().jwk(), rs.jwk(same)).verifier(t)
			wantInvalid(t, v, test.raw, test.reason)
		})
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	b.WriteString(`{"typ":"at+jwt","alg":"ES256"`)
	for i := range n {
		fmt.Fprintf(&b, `,"x%d":0`, i)
	}
	return b.String() + "}"
}

// The last character of a base64 signature has unused bits. If they were
// ignored, a token would have several encodings.
func TestTrailingBase64BitsMustBeZero(t *testing.T) {
	v := newIssuer(ecKey().jwk()).verifier(t)
	good := ecKey().token()
	wantGood(t, v, good, "as it was made")
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(good) - 1
	next := alphabet[strings.IndexByte(alphabet, good[last])+1]
	wantInvalid(t, v, good[:last]+string(next), notCompact)
}

func TestSecondECDSASignatureIsSameToken(t *testing.T) {
	v := newIssuer(ecKey().jwk()).verifier(t)
	good := ecKey().token()
	dot := strings.LastIndexByte(good, '.')
	signature := must(base64.RawURLEncoding.DecodeString(good[dot+1:]))
	s := new(big.Int).SetBytes(signature[32:])
	s.Sub(ecKey().private.Public().(*ecdsa.PublicKey).Params().N, s).FillBytes(signature[32:])
	second := good[:dot+1] + base64.RawURLEncoding.EncodeToString(signature)
	if second == good {
		t.Fatal("the two forms are equal")
	}
	if first, other := wantGood(t, v, good, "the first form"), wantGood(t, v, second,
		"the second form"); first.ID != other.ID || first.Issuer != other.Issuer {
		t.Errorf("got %s and %s, want one identity to revoke", first.ID, other.ID)
	}
}

func TestKeysInTokenAreIgnored(t *testing.T) {
	evil := newEC("evil", "ES256", elliptic.P256())
	for _, test := range []struct {
		name   string
		header object
	}{
		{"jwk", object{"jwk": evil.jwk()}},
		{"jwk under a good kid", object{"jwk": evil.jwk(), "kid": "ec"}},
		{"jku", object{"jku": "https://evil.example/keys"}},
		{"x5u", object{"x5u": "https://evil.example/cert"}},
		{"x5c", object{"x5c": []string{"MIIB"}}},
		{"jku without a kid", object{"jku": "https://evil.example/keys", "kid": nil}},
	} {
		t.Run(test.name, func(t *testing.T) {
			iss := newIssuer(ecKey().jwk())
			v := iss.verifier(t)
			wantInvalid(t, v, evil.tokenWithHeader(test.header), badSignature)
			wantGood(t, v, ecKey().tokenWithHeader(edit(maps.Clone(test.header),
				object{"kid": "ec"})), "a good token that brings another key")
			for url := range iss.requests() {
				if !strings.HasPrefix(url, issuerURL+"/") {
					t.Errorf("unexpected request for %s", url)
				}
			}
		})
	}
}

func TestInsecureAllowAnyType(t *testing.T) {
	lax := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) { c.InsecureAllowAnyType = true })
	for _, test := range []struct {
		name           string
		header, claims object
		reason         string // empty: accepted
	}{
		{"typ JWT", object{"typ": "JWT"}, nil, ""},
		{"no typ", object{"typ": nil}, nil, ""},
		{"typ at+jwt", nil, nil, ""},
		{"without client_id, iat and jti", object{"typ": "JWT"},
			object{"client_id": nil, "iat": nil, "jti": nil, "azp": "spa"}, ""},
		{"without sub", object{"typ": "JWT"}, object{"sub": nil}, lacksClaim},
		{"without exp", object{"typ": "JWT"}, object{"exp": nil}, lacksClaim},
		{"an ID token with a nonce", object{"typ": "JWT"}, object{"nonce": "n"}, badType},
		{"an ID token with at_hash", object{"typ": "JWT"}, object{"at_hash": "h"}, badType},
		{"an ID token with c_hash", object{"typ": "JWT"}, object{"c_hash": "h"}, badType},
		{"an ID token for the client", object{"typ": "JWT"}, object{"aud": "spa"}, otherAudience},
		{"a logout token without a type", object{"typ": "JWT"},
			object{"events": object{"http://schemas.openid.net/event/backchannel-logout": object{}}}, badType},
		{"a logout token", object{"typ": "logout+jwt"}, nil, badType},
		{"a DPoP proof", object{"typ": "application/DPOP+JWT"}, nil, badType},
	} {
		t.Run(test.name, func(t *testing.T) {
			raw := ecKey().tokenWithHeader(test.header, test.claims)
			if test.reason != "" {
				wantInvalid(t, lax, raw, test.reason)
			} else if token := wantGood(t, lax, raw, test.name); token.ClientID != "spa" {
				t.Errorf("got the client %q, want spa", token.ClientID)
			}
		})
	}
}

func TestIsClient(t *testing.T) {
	v := newIssuer(ecKey().jwk()).verifier(t)
	if token := wantGood(t, v, ecKey().token(object{"sub": "alice", "client_id": "alice"}),
		"a token of the client alice"); !token.IsClient() {
		t.Error("IsClient is false for a token of the client alice")
	}
	if token := wantGood(t, v, ecKey().token(), "a token of the user alice"); token.IsClient() {
		t.Error("IsClient is true for a token of the user alice")
	}
}

func TestOtherIssuerWithSameKeysIsRejected(t *testing.T) {
	v := newIssuer(ecKey().jwk()).verifier(t)
	wantInvalid(t, v, ecKey().token(object{"iss": "https://id.example/other"}), otherIssuer)
}

func TestScopesAreSplitAtSpaces(t *testing.T) {
	v := newIssuer(ecKey().jwk()).verifier(t)
	token := wantGood(t, v, ecKey().token(object{"scope": "  readwrite a\u00a0b  c\td "}), "a token with odd scopes")
	if want := []string{"readwrite", "a\u00a0b", "c\td"}; !slices.Equal(token.Scopes, want) {
		t.Errorf("got %q, want %q", token.Scopes, want)
	}
	for scope, want := range map[string]bool{"readwrite": true, "read": false, "write": false,
		"Readwrite": false, "a": false, "": false, "a b": false} {
		if token.HasScope(scope) != want {
			t.Errorf("HasScope(%q): got %v, want %v", scope, !want, want)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	good := bearer.Config{Issuer: issuerURL, Audience: audience}
	for _, test := range []struct {
		name string
		edit func(*bearer.Config)
		want string
	}{
		{"nothing set", func(c *bearer.Config) { *c = bearer.Config{} }, "Issuer: missing\nAudience: missing"},
		{"all wrong", func(c *bearer.Config) {
			*c = bearer.Config{Issuer: "id.example", Algorithms: []string{"RS256", "none", "HS256"},
				Leeway: 61 * time.Second, Realm: `a"b`}
		},
			`Issuer: "id.example" is not a URL such as https://id.example.com
Audience: missing
Algorithms: "none" is not an asymmetric signature algorithm such as RS256
Algorithms: "HS256" is not an asymmetric signature algorithm such as RS256
Leeway: 1m1s is not between 0 and 1m0s
Realm: "a\"b" must be printable ASCII without quotes and backslashes`},
		{"http", func(c *bearer.Config) { c.Issuer = "http://id.example" },
			`Issuer: "http://id.example": http is allowed for loopback hosts only; use https`},
		{"http on a host that begins like localhost",
			func(c *bearer.Config) { c.Issuer = "http://localhost.evil.example" },
			`Issuer: "http://localhost.evil.example": http is allowed for loopback hosts only; use https`},
		{"another scheme", func(c *bearer.Config) { c.Issuer = "ftp://localhost" },
			`Issuer: "ftp://localhost": the scheme must be https`},
		{"a query", func(c *bearer.Config) { c.Issuer = issuerURL + "?a=b" },
			`Issuer: "https://id.example?a=b": an issuer must not have a query or a fragment`},
		{"a fragment", func(c *bearer.Config) { c.Issuer = issuerURL + "#" },
			`Issuer: "https://id.example#": an issuer must not have a query or a fragment`},
		{"a user", func(c *bearer.Config) { c.Issuer = "https://me@id.example" },
			`Issuer: "https://me@id.example" is not a URL such as https://id.example.com`},
		{"a negative leeway", func(c *bearer.Config) { c.Leeway = -1 }, "Leeway: -1ns is not between 0 and 1m0s"},
		{"an algorithm in another case",
			func(c *bearer.Config) { c.Algorithms = []string{"es256"} },
			`Algorithms: "es256" is not an asymmetric signature algorithm such as RS256`},
		{"an origin with a path", func(c *bearer.Config) { c.Origin = "https://api.example/v1" },
			`Origin: "https://api.example/v1" is not a scheme and host such as https://api.example.com`},
		{"an origin with a user", func(c *bearer.Config) { c.Origin = "https://me@api.example" },
			`Origin: "https://me@api.example" is not a scheme and host such as https://api.example.com`},
		{"an origin without a scheme", func(c *bearer.Config) { c.Origin = "api.example" },
			`Origin: "api.example" is not a scheme and host such as https://api.example.com`},
		{"an origin with a query", func(c *bearer.Config) { c.Origin = "https://api.example?x" },
			`Origin: "https://api.example?x" is not a scheme and host such as https://api.example.com`},
		{"an origin of another scheme", func(c *bearer.Config) { c.Origin = "ftp://api.example" },
			`Origin: "ftp://api.example" is not a scheme and host such as https://api.example.com`},
		{"an origin with a slash", func(c *bearer.Config) { c.Origin = "https://api.example/" }, ""},
		{"http on localhost", func(c *bearer.Config) { c.Issuer = "http://localhost:8080/realm" }, ""},
		{"http below .localhost", func(c *bearer.Config) { c.Issuer = "http://id.localhost:8080" }, ""},
		{"http on 127.0.0.1", func(c *bearer.Config) { c.Issuer = "http://127.0.0.1:8080" }, ""},
		{"http on ::1", func(c *bearer.Config) { c.Issuer = "http://[::1]:8080" }, ""},
		{"the new name of EdDSA", func(c *bearer.Config) { c.Algorithms = []string{"Ed25519"} }, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := good
			test.edit(&cfg)
			v, err := bearer.NewVerifier(cfg)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != test.want || (v == nil) != (test.want != "") {
				t.Errorf("got %v and\n%s\nwant\n%s", v, got, test.want)
			}
		})
	}
}

func TestConfigErrorsNameFieldAndValue(t *testing.T) {
	_, err := bearer.NewVerifier(bearer.Config{Issuer: "id.example", Audience: audience,
		Introspection: &bearer.Introspection{Endpoint: "http://id.example/i", ClientID: "a", ClientSecret: "s3cret"}})
	got := make(map[string]string)
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		mistake, ok := errors.AsType[*bearer.ConfigError](e)
		if !ok {
			t.Fatalf("got %v, want a ConfigError", e)
		}
		got[mistake.Key] = mistake.Value
	}
	want := map[string]string{"Issuer": "id.example", "Introspection.Endpoint": "http://id.example/i"}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestLeeway(t *testing.T) {
	v := newIssuer(ecKey().jwk()).verifier(t, func(c *bearer.Config) { c.Leeway = time.Second })
	wantInvalid(t, v, ecKey().token(object{"exp": time.Now().Add(-2 * time.Second).Unix()}), expired)
}

func TestConfigAlgorithms(t *testing.T) {
	v := newIssuer(ecKey().jwk(), ed25519Key().jwk()).verifier(t,
		func(c *bearer.Config) { c.Algorithms = []string{"Ed25519"} })
	wantGood(t, v, ed25519Key().tokenWithHeader(object{"alg": "Ed25519"}), "Ed25519")
	wantInvalid(t, v, ed25519Key().token(), badAlgorithm) // EdDSA, the other name
	wantInvalid(t, v, ecKey().token(), badAlgorithm)
}
