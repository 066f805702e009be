package bff_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

// A refused grant type is no sign of an outage of the others.
func TestRefusedGrantsDoNotOpenTheBreaker(t *testing.T) {
	t.Parallel()
	for status, body := range map[int]string{
		400: `{"error":"unauthorized_client"}`,
		401: `{"error":"unauthorized_client"}`,
		403: `<html>`,
		200: `{}`,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			a := newTargetApp(t, nil)
			a.recordCalls(devidp.Hooks{Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.HasSuffix(r.PostFormValue("grant_type"), "token-exchange") {
					w.WriteHeader(status)
					fmt.Fprint(w, body)
					return
				}
				next.ServeHTTP(w, r)
			}})
			one, other := a.signedIn(), a.signedIn()
			for range 2 {
				wantProblem(t, one.Fetch("GET", "/exchanged/x"), 503, "provider_unavailable")
				wantProblem(t, other.Fetch("GET", "/exchanged/x"), 503, "provider_unavailable")
			}
			if strings.Contains(a.logs.String(), "provider unavailable;") {
				t.Error("the refused grants opened the circuit breaker")
			}
		})
	}
}
