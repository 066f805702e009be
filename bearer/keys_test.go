package bearer_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

func wantUnavailable(t *testing.T, v *bearer.Verifier, raw, why string) {
	t.Helper()
	_, err := v.Verify(t.Context(), raw)
	if !errors.Is(err, bearer.ErrUnavailable) {
		t.Fatalf("%s: got %v, want ErrUnavailable", why, err)
	}
	if _, ok := isInvalid(err); ok {
		t.Fatalf("%s: got %v, which blames the token", why, err)
	}
}

func wantFetches(t *testing.T, iss *issuer, want int, why string) {
	t.Helper()
	if got := iss.fetches(); got != want {
		t.Errorf("%s: got %d fetches of the keys, want %d", why, got, want)
	}
}

// long is a token that is valid for longer than any test runs.
func long(s *signer, header ...object) string {
	exp := object{"exp": time.Now().Add(100 * time.Hour).Unix()}
	if len(header) > 0 {
		return s.tokenWithHeader(header[0], exp)
	}
	return s.token(exp)
}

// warm returns an issuer and a verifier that has fetched its keys.
func warm(t *testing.T, keys ...object) (*issuer, *bearer.Verifier) {
	t.Helper()
	iss := newIssuer(keys...)
	v := iss.verifier(t)
	wantGood(t, v, long(ecKey()), "the first token")
	wantFetches(t, iss, 1, "the first token")
	return iss, v
}

func TestVerifyWithKeysUsesNoNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss, v := warm(t, ecKey().jwk())
		iss.misbehave(hangs)
		for range 100 {
			wantGood(t, v, long(ecKey()), "a known key")
		}
		if got := iss.requests(); len(got) != 2 || got[jwksURL] != 1 {
			t.Errorf("got the requests %v, want one for the metadata and one for the keys", got)
		}
	})
}

func TestConcurrentRequestsShareFirstFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := newIssuer(ecKey().jwk())
		v := iss.verifier(t)
		raw := long(ecKey())
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if _, err := v.Verify(t.Context(), raw); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		wantFetches(t, iss, 1, "50 at a time")
	})
}

func TestCanceledRequestDoesNotCancelFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := newIssuer(ecKey().jwk())
		release := make(chan struct{})
		iss.misbehave(func(w http.ResponseWriter, r *http.Request) {
			<-release
			well(w, r, ecKey().jwk())
		})
		v := iss.verifier(t)
		leaving, leave := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			_, err := v.Verify(leaving, long(ecKey()))
			left <- err
		}()
		synctest.Wait()
		stayed := make(chan error)
		go func() {
			_, err := v.Verify(t.Context(), long(ecKey()))
			stayed <- err
		}()
		synctest.Wait()
		leave()
		if err := <-left; !errors.Is(err, bearer.ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("got %v for the one that left, want ErrUnavailable and its context's error", err)
		}
		close(release)
		if err := <-stayed; err != nil {
			t.Errorf("got %v for the one that stayed", err)
		}
		wantFetches(t, iss, 1, "two who share one")
	})
}

// well responds as a healthy issuer does.
func well(w http.ResponseWriter, r *http.Request, keys ...object) {
	if r.URL.String() == jwksURL {
		json.NewEncoder(w).Encode(object{"keys": keys})
	} else {
		json.NewEncoder(w).Encode(object{"issuer": issuerURL, "jwks_uri": jwksURL})
	}
}

func TestNewKeyIsFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss, v := warm(t, ecKey().jwk())
		next := newEC("next", "ES256", elliptic.P256())
		iss.publish(ecKey().jwk(), next.jwk())
		wantGood(t, v, long(next), "a token of the new key")
		wantFetches(t, iss, 2, "the new key")
		wantGood(t, v, long(ecKey()), "a token of the old key")
		wantFetches(t, iss, 2, "both keys at hand")
	})
}

func TestNewKeyWithoutKidIsFetched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		noKid := object{"kid": nil}
		iss, v := warm(t, ecKey().jwk())
		iss.publish(otherEC().jwk(noKid))
		wantGood(t, v, long(otherEC(), noKid), "a token of the new key")
		wantFetches(t, iss, 2, "the new key")
	})
}

func TestUnknownKidsCauseOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss, v := warm(t, ecKey().jwk())
		flood := func() {
			for i := range 1000 {
				wantInvalid(t, v, long(ecKey(), object{"kid": fmt.Sprint("random-", i)}), badSignature)
			}
		}
		flood()
		wantFetches(t, iss, 2, "the first thousand")
		time.Sleep(29 * time.Second)
		flood()
		wantFetches(t, iss, 2, "the thousand within the cool-down")
		time.Sleep(time.Second)
		flood()
		wantFetches(t, iss, 3, "the thousand after the cool-down")
	})
}

func TestConcurrentUnknownKidsShareFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss, v := warm(t, ecKey().jwk())
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				if _, ok := isInvalid(errorOf(v.Verify(t.Context(),
					long(ecKey(), object{"kid": fmt.Sprint("random-", i)})))); !ok {
					t.Error("a token with an unknown kid was accepted")
				}
			})
		}
		all.Wait()
		wantFetches(t, iss, 2, "a hundred at a time")
	})
}

func errorOf(_ *bearer.Token, err error) error { return err }

func TestUnknownKidWithNewKeysCausesNoFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := newIssuer(ecKey().jwk())
		wantInvalid(t, iss.verifier(t), long(ecKey(), object{"kid": "unknown"}), badSignature)
		wantFetches(t, iss, 1, "an unknown kid in the first token")
	})
}

func TestKnownKidDoesNotWaitForUnknownKid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss, v := warm(t, ecKey().jwk())
		iss.misbehave(hangs)
		refused := make(chan error)
		start := time.Now()
		go func() {
			_, err := v.Verify(t.Context(), long(ecKey(), object{"kid": "unknown"}))
			refused <- err
		}()
		synctest.Wait()
		wantGood(t, v, long(ecKey()), "a known kid during the fetch")
		if waited := time.Since(start); waited != 0 {
			t.Errorf("the known kid waited for %v", waited)
		}
		if err := <-refused; !errors.Is(err, bearer.ErrUnavailable) {
			t.Errorf("got %v for the unknown kid, want ErrUnavailable", err)
		}
		if waited := time.Since(start); waited != 10*time.Second {
			t.Errorf("the unknown kid waited for %v, want the 10 s of a fetch", waited)
		}
		wantUnavailable(t, v, long(ecKey(), object{"kid": "unknown"}), "an unknown kid while the issuer fails")
		wantGood(t, v, long(ecKey()), "a known kid during the cool-down")
		if waited := time.Since(start); waited != 10*time.Second {
			t.Errorf("a token waited for %v during the cool-down", waited-10*time.Second)
		}
	})
}

func TestKeysRefreshInBackground(t *testing.T) {
	for _, test := range []struct {
		cacheControl string
		lifetime     time.Duration
	}{
		{"", 10 * time.Minute},
		{"public", 10 * time.Minute},
		{"max-age=nonsense", 10 * time.Minute},
		{"public, max-age=1800", 30 * time.Minute},
		{"Max-Age=1800", 30 * time.Minute},
		{`max-age="1800"`, 30 * time.Minute},
		{"max-age=1", time.Minute},
		{"max-age=-5", time.Minute},
		{"max-age=-9223372037", time.Minute},
		{"no-store", time.Minute},
		{"no-cache, max-age=600", time.Minute},
		{"max-age=86400", time.Hour},
		{"max-age=9223372036854775807", time.Hour},
	} {
		t.Run(test.cacheControl, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				iss := newIssuer(ecKey().jwk())
				iss.cacheControl = test.cacheControl
				v := iss.verifier(t)
				wantGood(t, v, long(ecKey()), "the first token")
				time.Sleep(test.lifetime*4/5 - time.Second)
				wantGood(t, v, long(ecKey()), "before the last fifth")
				synctest.Wait()
				wantFetches(t, iss, 1, "before the last fifth")

				time.Sleep(2 * time.Second)
				slow := make(chan struct{})
				iss.misbehave(func(w http.ResponseWriter, r *http.Request) {
					<-slow
					well(w, r, otherEC().jwk())
				})
				before := time.Now()
				wantGood(t, v, long(ecKey()), "in the last fifth")
				if waited := time.Since(before); waited != 0 {
					t.Errorf("the token waited for %v", waited)
				}
				close(slow)
				synctest.Wait()
				wantFetches(t, iss, 2, "in the last fifth")
				wantInvalid(t, v, long(ecKey()), badSignature) // the kid now is another key's
				wantGood(t, v, long(otherEC()), "the new key")
			})
		})
	}
}

func TestWithdrawnKeyExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss, v := warm(t, ecKey().jwk(), rsaKey().jwk())
		iss.publish(rsaKey().jwk())
		wantGood(t, v, long(ecKey()), "within the lifetime")
		time.Sleep(10 * time.Minute) // and nothing asked meanwhile
		wantInvalid(t, v, long(ecKey()), badSignature)
		wantGood(t, v, long(rsaKey()), "the key that is left")
		wantFetches(t, iss, 2, "after the lifetime")
	})
}

func TestKeysUsedForAnHourWhileIssuerIsDown(t *testing.T) {
	for name, failure := range map[string]http.HandlerFunc{
		"503":          isDown,
		"a hang":       hangs,
		"no JSON":      func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) },
		"an empty set": func(w http.ResponseWriter, r *http.Request) { well(w, r) },
		"no set":       func(w http.ResponseWriter, r *http.Request) { well(w, r, nil) },
		"keys without use": func(w http.ResponseWriter, r *http.Request) {
			well(w, r, ecKey().jwk(object{"use": "enc"}), object{"kty": "oct", "k": "c2VjcmV0"})
		},
		"another issuer": func(w http.ResponseWriter, r *http.Request) {
			json.NewEncoder(w).Encode(object{"issuer": "https://evil.example", "jwks_uri": jwksURL})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				iss, v := warm(t, ecKey().jwk())
				iss.misbehave(failure)
				begin := time.Now()
				for time.Since(begin) < 69*time.Minute {
					time.Sleep(time.Minute)
					before := time.Now()
					wantGood(t, v, long(ecKey()), "the last key")
					if waited := time.Since(before); waited != 0 {
						t.Fatalf("after %v a token waited for %v", time.Since(begin), waited)
					}
				}
				time.Sleep(time.Minute)
				wantUnavailable(t, v, long(ecKey()), "after lifetime and window")
				iss.misbehave(nil)
				time.Sleep(5 * time.Second)
				wantGood(t, v, long(ecKey()), "when the issuer is back")
			})
		})
	}
}

func TestHangingIssuerDelaysOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss, v := warm(t, ecKey().jwk())
		iss.misbehave(hangs)
		time.Sleep(30 * time.Minute)
		for _, want := range []time.Duration{10 * time.Second, 0, 0} {
			before := time.Now()
			wantGood(t, v, long(ecKey()), "the last key")
			if waited := time.Since(before); waited != want {
				t.Errorf("a token waited for %v, want %v", waited, want)
			}
		}
	})
}

func TestUnknownKidDoesNotRetryFailedFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss, v := warm(t, ecKey().jwk())
		iss.misbehave(isDown)
		time.Sleep(30 * time.Minute)
		wantUnavailable(t, v, long(ecKey(), object{"kid": "unknown"}), "an unknown kid while the issuer fails")
		if got := iss.requests()[issuerURL+"/.well-known/openid-configuration"]; got != 2 {
			t.Errorf("got %d requests for the metadata, want one more than at first", got)
		}
	})
}

func TestFirstFetchIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss := newIssuer(ecKey().jwk())
		iss.misbehave(isDown)
		var log logs
		v := iss.verifier(t, func(c *bearer.Config) { c.Logger = log.logger() })
		for range 100 {
			wantUnavailable(t, v, long(ecKey()), "no keys yet")
		}
		if got := iss.requests(); len(got) != 1 || got[issuerURL+"/.well-known/openid-configuration"] != 1 {
			t.Errorf("got the requests %v, want one for the metadata", got)
		}
		iss.misbehave(nil)
		time.Sleep(5 * time.Second)
		wantGood(t, v, long(ecKey()), "keys at last")
		for _, want := range []string{"keys cannot be fetched", "503", "keys fetched"} {
			if strings.Count(log.String(), want) != 1 {
				t.Errorf("the log does not contain %q exactly once:\n%s", want, log.String())
			}
		}
	})
}

func TestUnknownCAOfTheIssuerIsExplained(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.StartTLS()
	defer server.Close()
	var log logs
	v, err := bearer.NewVerifier(bearer.Config{Issuer: server.URL, Audience: audience, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	wantUnavailable(t, v, long(ecKey(), object{"iss": server.URL}), "an unknown CA")
	for _, want := range []string{"certificate signed by unknown authority", "accept_bearer.ca_file"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, log.String())
		}
	}
}

func TestOnlyVerificationKeysAreUsed(t *testing.T) {
	const bits = 1024
	small := newRSA("small", "RS256", bits)
	p384 := newEC("p384", "ES384", elliptic.P384())
	coordinate := func(s *signer, name string) []byte {
		return must(base64.RawURLEncoding.DecodeString(s.jwk()[name].(string)))
	}
	offCurve := coordinate(ecKey(), "y")
	offCurve[31] ^= 1
	type verdict int
	const (
		used    verdict = iota
		unfit           // a key like any other, but not for this token
		skipped         // as if it were not there
	)
	for _, test := range []struct {
		name string
		key  object
		raw  string
		want verdict
	}{
		{"use sig", ecKey().jwk(object{"use": "sig"}), long(ecKey()), used},
		{"use enc", ecKey().jwk(object{"use": "enc"}), long(ecKey()), skipped},
		{"key_ops with verify", ecKey().jwk(object{"key_ops": []string{"verify"}}), long(ecKey()), used},
		{"key_ops without verify", ecKey().jwk(object{"key_ops": []string{"encrypt"}}), long(ecKey()), skipped},
		{"empty key_ops", ecKey().jwk(object{"key_ops": []string{}}), long(ecKey()), skipped},
		{"its own alg", ecKey().jwk(object{"alg": "ES256"}), long(ecKey()), used},
		{"another alg", rsaKey().jwk(object{"alg": "PS256"}), long(rsaKey()), unfit},
		{"an alg of another type", ecKey().jwk(object{"alg": "RS256"}), long(ecKey()), skipped},
		{"an HMAC alg", rsaKey().jwk(object{"alg": "HS256"}), long(rsaKey()), skipped},
		{"an encryption alg", rsaKey().jwk(object{"alg": "RSA-OAEP"}), long(rsaKey()), skipped},
		{"a key published whole", ecKey().jwk(object{"d": "AAAA"}), long(ecKey()), skipped},
		{"an RSA key of 1024 bits", small.jwk(), long(small), skipped},
		{"an RSA key of 16384 bits", rsaKey().jwk(object{"n": strings.Repeat("_", 16384/24*4)}),
			long(rsaKey()), skipped},
		{"an RSA key with an even modulus",
			rsaKey().jwk(object{"n": rsaKey().jwk()["n"].(string)[:340] + "AA"}), long(rsaKey()), skipped},
		{"an RSA key with the exponent 1", rsaKey().jwk(object{"e": "AQ"}), long(rsaKey()), skipped},
		{"an RSA key with an even exponent", rsaKey().jwk(object{"e": "AQAC"}), long(rsaKey()), skipped},
		{"an RSA key with a huge exponent", rsaKey().jwk(object{"e": "AQAAAAAAAAAB"}), long(rsaKey()), skipped},
		{"an RSA key without n", rsaKey().jwk(object{"n": nil}), long(rsaKey()), skipped},
		{"a point that is off the curve",
			ecKey().jwk(object{"y": base64.RawURLEncoding.EncodeToString(offCurve)}), long(ecKey()), skipped},
		{"the point 0,0",
			ecKey().jwk(object{"x": strings.Repeat("A", 43), "y": strings.Repeat("A", 43)}), long(ecKey()), skipped},
		{"a point beyond the field",
			ecKey().jwk(object{"x": base64.RawURLEncoding.EncodeToString(beyond(coordinate(ecKey(),
				"x")))}), long(ecKey()), skipped},
		{"a point with a zero before",
			ecKey().jwk(object{"x": base64.RawURLEncoding.EncodeToString(append([]byte{0},
				coordinate(ecKey(), "x")...))}), long(ecKey()), skipped},
		{"a point with x and y cut in the wrong place",
			ecKey().jwk(cutAt(31, coordinate(ecKey(), "x"), coordinate(ecKey(), "y"))), long(ecKey()), skipped},
		{"an unknown curve", ecKey().jwk(object{"crv": "secp256k1"}), long(ecKey()), skipped},
		{"the key of another curve", p384.jwk(object{"kid": "ec"}), long(ecKey()), unfit},
		{"Ed25519 that is short", ed25519Key().jwk(object{"x": "AAAA"}), long(ed25519Key()), skipped},
		{"Ed25519 of another curve", ed25519Key().jwk(object{"crv": "X25519"}), long(ed25519Key()), skipped},
		{"Ed25519 with its new name", ed25519Key().jwk(object{"alg": "Ed25519"}), long(ed25519Key()), used},
		{"an unknown type", object{"kty": "LATTICE", "kid": "ec", "x": []int{1}}, long(ecKey()), skipped},
		{"a shared secret", object{"kty": "oct", "kid": "ec", "k": "c2VjcmV0"}, long(ecKey()), skipped},
		{"what is no key", object{"kid": 7}, long(ecKey()), skipped},
	} {
		t.Run(test.name, func(t *testing.T) {
			other := newEC("other", "ES256", elliptic.P256()) // a good key beside: one bad one is not fatal
			v := newIssuer(test.key, other.jwk()).verifier(t)
			wantGood(t, v, long(other), "the key beside")
			alone := newIssuer(test.key).verifier(t)
			switch test.want {
			case used:
				wantGood(t, v, test.raw, test.name)
			case unfit:
				wantInvalid(t, v, test.raw, badSignature)
				wantInvalid(t, alone, test.raw, badSignature)
			case skipped:
				wantInvalid(t, v, test.raw, badSignature)
				wantUnavailable(t, alone, test.raw, "a set of no usable key")
			}
		})
	}
}

// cutAt joins the first n bytes of an encoded point as x and the rest as y.
func cutAt(n int, x, y []byte) object {
	point := slices.Concat(x, y)
	return object{"x": base64.RawURLEncoding.EncodeToString(point[:n]),
		"y": base64.RawURLEncoding.EncodeToString(point[n:])}
}

// beyond adds the prime of P-256 to a coordinate. A decoder that does not check
// the range takes it for the same point. The result is truncated to the
// coordinate's size.
func beyond(coordinate []byte) []byte {
	n := new(big.Int).SetBytes(coordinate)
	n.Add(n, elliptic.P256().Params().P)
	return n.FillBytes(make([]byte, 33))[1:]
}

func TestSharedKidIsResolvedByAlgorithm(t *testing.T) {
	same := object{"kid": "2026"}
	v := newIssuer(rsaKey().jwk(same), ecKey().jwk(same), ed25519Key().jwk(same)).verifier(t)
	for _, s := range []*signer{rsaKey(), ecKey(), ed25519Key()} {
		wantGood(t, v, long(s, same), s.alg)
	}
}

func TestTokenWithoutKidMustBeUnambiguous(t *testing.T) {
	noKid := object{"kid": nil}
	v := newIssuer(rsaKey().jwk(), ecKey().jwk(noKid)).verifier(t)
	wantGood(t, v, long(ecKey(), noKid), "one key for ES256")
	wantGood(t, v, long(rsaKey(), noKid), "one key for RS256")
	wantInvalid(t, v, long(ed25519Key(), noKid), badSignature)
	two := newIssuer(ecKey().jwk(), otherEC().jwk(object{"kid": "other"})).verifier(t)
	wantInvalid(t, two, long(ecKey(), noKid), badSignature)
}

func TestInvalidIssuerResponses(t *testing.T) {
	good := ecKey().jwk()
	metadata := func(issuer, jwks any) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/openid-configuration") {
				json.NewEncoder(w).Encode(edit(object{}, object{"issuer": issuer, "jwks_uri": jwks}))
			} else {
				json.NewEncoder(w).Encode(object{"keys": []object{good}})
			}
		}
	}
	keys := func(response http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/keys":
				response(w, r)
			case "/keys2":
				json.NewEncoder(w).Encode(object{"keys": []object{good}})
			default:
				well(w, r)
			}
		}
	}
	redirect := func(target string) http.HandlerFunc {
		return keys(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target, http.StatusFound) })
	}
	many := make([]object, 101)
	for i := range many {
		many[i] = good
	}
	for _, test := range []struct {
		name   string
		answer http.HandlerFunc
		good   bool
	}{
		{"all as it should be", metadata(issuerURL, jwksURL), true},
		{"keys on another host, as the metadata says", metadata(issuerURL, "https://keys.example/keys"), true},
		{"another issuer in the metadata", metadata("https://evil.example", jwksURL), false},
		{"the issuer with a slash in the metadata", metadata(issuerURL+"/", jwksURL), false},
		{"no issuer in the metadata", metadata(nil, jwksURL), false},
		{"no jwks_uri", metadata(issuerURL, nil), false},
		{"keys by http", metadata(issuerURL, "http://id.example/keys"), false},
		{"keys by http on this machine", metadata(issuerURL, "http://localhost/keys"), false},
		{"keys in a file", metadata(issuerURL, "file:///etc/keys"), false},
		{"keys at a relative URL", metadata(issuerURL, "/keys"), false},
		{"a redirect on the same host", redirect("https://id.example/keys2"), true},
		{"a redirect to another host", redirect("https://evil.example/keys"), false},
		{"a redirect to another port", redirect("https://id.example:8443/keys"), false},
		{"a redirect to http", redirect("http://id.example/keys2"), false},
		{"a redirect without end", redirect(jwksURL), false},
		{"404", keys(http.NotFound), false},
		{"204", keys(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }), false},
		{"more keys than there can be",
			keys(func(w http.ResponseWriter,
				_ *http.Request) {
				json.NewEncoder(w).Encode(object{"keys": many})
			}), false},
		{"as many keys as there can be",
			keys(func(w http.ResponseWriter,
				_ *http.Request) {
				json.NewEncoder(w).Encode(object{"keys": many[:100]})
			}), true},
		{"more than a megabyte", keys(func(w http.ResponseWriter, _ *http.Request) {
			json.NewEncoder(w).Encode(object{"keys": []object{good}})
			w.Write(bytes.Repeat([]byte(" "), 1<<20))
		}), false},
		{"keys that are not in an array",
			keys(func(w http.ResponseWriter,
				_ *http.Request) {
				json.NewEncoder(w).Encode(object{"keys": good})
			}), false},
		{"a bare array",
			keys(func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode([]object{good}) }), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			iss := newIssuer()
			iss.misbehave(test.answer)
			v := iss.verifier(t)
			if test.good {
				wantGood(t, v, long(ecKey()), test.name)
			} else {
				wantUnavailable(t, v, long(ecKey()), test.name)
			}
			for url := range iss.requests() {
				if strings.Contains(url, "evil") {
					t.Errorf("unexpected request for %s", url)
				}
			}
		})
	}
}

func TestCompressedResponseLimit(t *testing.T) {
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(object{"issuer": server.URL, "jwks_uri": server.URL + "/keys"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		packed := gzip.NewWriter(w)
		defer packed.Close()
		packed.Write([]byte(`{"keys":[],"x":"`))
		for range 64 {
			if _, err := packed.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	v, err := bearer.NewVerifier(bearer.Config{Issuer: server.URL, Audience: audience, Logger: new(logs).logger()})
	if err != nil {
		t.Fatal(err)
	}
	wantUnavailable(t, v, long(ecKey()), "64 MiB of keys")
}

func TestJWKSURIMayChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		iss, v := warm(t, ecKey().jwk())
		iss.misbehave(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/.well-known/openid-configuration":
				json.NewEncoder(w).Encode(object{"issuer": issuerURL, "jwks_uri": issuerURL + "/new"})
			case "/new":
				json.NewEncoder(w).Encode(object{"keys": []object{rsaKey().jwk()}})
			default:
				http.NotFound(w, r)
			}
		})
		wantGood(t, v, long(rsaKey()), "a key at the new place")
	})
}
