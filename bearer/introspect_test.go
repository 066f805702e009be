package bearer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

const opaque = "2YotnFZFEjr1zCsicMWpAA"

// introspecting returns a verifier whose introspection endpoint is h, and a
// counter of its requests.
func introspecting(t *testing.T, h http.HandlerFunc, edits ...func(*bearer.Config)) (*bearer.Verifier, *atomic.Int32) {
	t.Helper()
	var requests atomic.Int32
	iss := newIssuer(ecKey().jwk())
	iss.elsewhere = func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		h(w, r)
	}
	return iss.verifier(t, append([]func(*bearer.Config){func(c *bearer.Config) {
		c.Introspection = &bearer.Introspection{Endpoint: issuerURL + "/introspect",
			ClientID: "the api", ClientSecret: "s+cret:"}
	}}, edits...)...), &requests
}

func responds(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json;charset=UTF-8")
		if text, ok := v.(string); ok {
			fmt.Fprint(w, text)
			return
		}
		json.NewEncoder(w).Encode(v)
	}
}

func TestIntrospection(t *testing.T) {
	exp := time.Now().Add(time.Minute).Unix()
	v, requests := introspecting(t, func(w http.ResponseWriter, r *http.Request) {
		id, secret, _ := r.BasicAuth()
		r.ParseForm()
		for _, field := range []struct{ name, got, want string }{
			{"method", r.Method, "POST"},
			{"URL", r.URL.String(), issuerURL + "/introspect"},
			{"client id", id, "the+api"},
			{"client secret", secret, "s%2Bcret%3A"},
			{"token", r.PostForm.Get("token"), opaque},
			{"token_type_hint", r.PostForm.Get("token_type_hint"), "access_token"},
		} {
			if field.got != field.want {
				t.Errorf("%s: got %q, want %q", field.name, field.got, field.want)
			}
		}
		responds(object{"active": true, "sub": "alice", "client_id": "spa",
			"aud": []string{audience}, "scope": "orders:read", "exp": exp, "token_type": "Bearer"})(w, r)
	})
	for range 3 {
		token := wantGood(t, v, opaque, "an opaque token")
		if token.Subject != "alice" || token.ClientID != "spa" || !token.HasScope("orders:read") ||
			token.Issuer != issuerURL || token.Expiry.Unix() != exp {
			t.Errorf("got %+v", token)
		}
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("got %d introspection requests, want 1", n)
	}
	wantGood(t, v, ecKey().token(), "a JWT")
	wantInvalid(t, v, otherEC().token(), badSignature)
	wantInvalid(t, v, ecKey().token(object{"exp": 1}), expired)
	if n := requests.Load(); n != 1 {
		t.Errorf("got %d introspection requests after JWTs, want 1", n)
	}
}

func TestIntrospectionResponseChecked(t *testing.T) {
	good := object{"active": true, "sub": "alice", "aud": audience, "exp": time.Now().Add(time.Minute).Unix()}
	with := func(e object) object { return edit(edit(object{}, good), e) }
	for _, test := range []struct {
		name     string
		response any
		reason   string // empty: accepted; "-": unknown
	}{
		{"the least there is to say", good, ""},
		{"without exp", with(object{"exp": nil}), ""},
		{"with iss", with(object{"iss": issuerURL}), ""},

		{"not active", object{"active": false}, "the token is not active"},
		{"not active, with all else", with(object{"active": false}), "the token is not active"},
		{"another issuer", with(object{"iss": otherURL}), otherIssuer},
		{"another audience", with(object{"aud": "invoices"}), otherAudience},
		{"no audience", with(object{"aud": nil}), otherAudience},
		{"expired", with(object{"exp": 1}), expired},
		{"not yet valid", with(object{"nbf": time.Now().Add(time.Hour).Unix()}), notYet},
		{"no sub", with(object{"sub": nil}), lacksClaim},
		{"a refresh token", with(object{"token_use": "refresh_token"}), badType},
		{"exp as a string", with(object{"exp": "soon"}), badClaims},
		{"bound to a key", with(object{"cnf": object{"jkt": "x"}}), boundToKey},

		{"active as a string", with(object{"active": "true"}), "-"},
		{"no active", with(object{"active": nil}), "-"},
		{"active twice", `{"active":false,"active":true,"sub":"alice","aud":"orders"}`, "-"},
		{"no JSON", "active", "-"},
		{"an array", "[true]", "-"},
		{"too long", `{"active":true,"x":"` + strings.Repeat("x", 2<<20) + `"}`, "-"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v, requests := introspecting(t, responds(test.response))
			for range 2 {
				switch test.reason {
				case "":
					wantGood(t, v, opaque, test.name)
				case "-":
					if _, err := v.Verify(t.Context(), opaque); !errors.Is(err, bearer.ErrUnavailable) {
						t.Errorf("got %v, want ErrUnavailable", err)
					}
				default:
					wantInvalid(t, v, opaque, test.reason)
				}
			}
			// failures are not cached
			if n, want := requests.Load(), map[bool]int32{true: 2, false: 1}[test.reason == "-"]; n != want {
				t.Errorf("got %d introspection requests, want %d", n, want)
			}
		})
	}
}

func TestIntrospectionUnavailable(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"500":                    isDown,
		"401, which is about us": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) },
		"401 with a body": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(401)
			fmt.Fprint(w, `{"active":true,"sub":"alice","aud":"orders"}`)
		},
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, issuerURL+"/other", http.StatusTemporaryRedirect)
		},
		"HTML": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, `{"active":true}`)
		},
	} {
		v, requests := introspecting(t, h)
		if _, err := v.Verify(t.Context(), opaque); !errors.Is(err, bearer.ErrUnavailable) || requests.Load() != 1 {
			t.Errorf("%s: got %v after %d requests, want ErrUnavailable after one", name, err, requests.Load())
		}
		if strings.Contains(fmt.Sprint(v.Verify(t.Context(), opaque)), opaque) {
			t.Errorf("%s: the error contains the token", name)
		}
	}
}

func TestIntrospectionCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		active := atomic.Bool{}
		active.Store(true)
		v, requests := introspecting(t, func(w http.ResponseWriter, r *http.Request) {
			responds(object{"active": active.Load(), "sub": "alice", "aud": audience})(w, r)
		})
		wantGood(t, v, opaque, "at first")
		active.Store(false)
		time.Sleep(29 * time.Second)
		wantGood(t, v, opaque, "for half a minute")
		time.Sleep(2 * time.Second)
		wantInvalid(t, v, opaque, "the token is not active")
		active.Store(true)
		wantInvalid(t, v, opaque, "the token is not active")
		if n := requests.Load(); n != 2 {
			t.Errorf("got %d introspection requests, want 2", n)
		}
		short, requests := introspecting(t, func(w http.ResponseWriter, r *http.Request) {
			responds(object{"active": true, "sub": "alice", "aud": audience,
				"exp": time.Now().Add(5 * time.Second).Unix()})(w, r)
		})
		wantGood(t, short, opaque, "a token of five seconds")
		time.Sleep(6 * time.Second)
		wantGood(t, short, opaque, "the next response")
		if n := requests.Load(); n != 2 {
			t.Errorf("got %d introspection requests for an expiring token, want 2", n)
		}
	})
}

func TestIntrospectionSharedByConcurrentRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, requests := introspecting(t, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			responds(object{"active": true, "sub": "alice", "aud": audience})(w, r)
		}, func(c *bearer.Config) { c.Introspection.CacheFor = -1 })
		var all sync.WaitGroup
		leaving, leave := context.WithCancel(t.Context())
		all.Go(func() {
			if _, err := v.Verify(leaving, opaque); !errors.Is(err, bearer.ErrUnavailable) {
				t.Errorf("the canceled request got %v, want ErrUnavailable", err)
			}
		})
		synctest.Wait()
		time.AfterFunc(time.Millisecond, leave) // cancels one of the waiting requests
		for range 50 {
			all.Go(func() {
				if _, err := v.Verify(t.Context(), opaque); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := requests.Load(); n != 1 {
			t.Errorf("got %d introspection requests, want 1", n)
		}
		wantGood(t, v, opaque, "once more")
		if n := requests.Load(); n != 2 {
			t.Errorf("got %d introspection requests without a cache, want 2", n)
		}
	})
}

func TestIntrospectionConfigErrors(t *testing.T) {
	for _, test := range []struct {
		in   bearer.Introspection
		want string
	}{
		{bearer.Introspection{}, `Introspection.Endpoint: missing
Introspection.ClientID: missing
Introspection.ClientSecret: missing`},
		{bearer.Introspection{Endpoint: "http://id.example/i", ClientID: "a", ClientSecret: "s3cret"},
			`Introspection.Endpoint: "http://id.example/i": ` +
				`http is allowed for loopback hosts only; use https`},
		{bearer.Introspection{Endpoint: "https://id.example/i", ClientID: "a"},
			"Introspection.ClientSecret: missing"},
		{bearer.Introspection{Endpoint: "https://id.example/i", ClientID: "a",
			ClientSecret: "s3cret", CacheFor: 2 * time.Hour}, "Introspection.CacheFor: 2h0m0s is more than 1h"},
	} {
		_, err := bearer.NewVerifier(bearer.Config{Issuer: issuerURL, Audience: audience, Introspection: &test.in})
		if err == nil || err.Error() != test.want {
			t.Errorf("got %v, want %s", err, test.want)
		}
	}
}
