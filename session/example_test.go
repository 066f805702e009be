package session_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// A login starts a session. Later requests find it by its cookie, and get an
// access token that can be used.
func Example() {
	ctx := context.Background()
	key := make([]byte, 32) // from the configuration, so that sessions survive a restart
	rand.Read(key)

	sessions, err := session.NewManager(session.Config{
		Store: new(tokenstore.Memory),
		Keys:  [][]byte{key},
		App:   session.App{Issuer: "https://id.example", ClientID: "spa", Origin: "https://app.example"},
		Refresh: func(_ context.Context, s *session.Session, _ string) (session.RefreshResult, error) {
			// Send s.Tokens.Refresh to the token endpoint of the provider here.
			now := time.Now()
			return session.RefreshResult{Tokens: session.Tokens{
				Access: "new access token", Refresh: "new refresh token", Issued: now, Expiry: now.Add(time.Hour),
			}}, nil
		},
		Observe: func(_ context.Context, e session.Event) { fmt.Printf("%s %q\n", e.Kind, e.Reason) },
	})
	if err != nil {
		log.Fatal(err)
	}
	cookie := session.NewCookie(sessions.Keyring(), session.CookieConfig{})

	// The callback of a login.
	w := httptest.NewRecorder()
	now := time.Now()
	started, err := sessions.Start(ctx, session.New{
		Issuer: "https://id.example", Subject: "alice",
		Tokens: session.Tokens{Access: "access token", Refresh: "refresh token",
			Issued: now.Add(-time.Hour), Expiry: now},
	})
	if err != nil {
		log.Fatal(err)
	}
	cookie.Write(w, started)

	// An API call of the same browser.
	r := httptest.NewRequest(http.MethodGet, "/api/orders", nil)
	r.AddCookie(w.Result().Cookies()[0])
	ticket, _ := cookie.Read(r)
	current, err := sessions.Find(ctx, ticket)
	if err != nil {
		log.Fatal(err)
	}
	current, err = sessions.Fresh(ctx, current, "")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(current.Subject, current.Authorization(""))

	// A logout.
	if err := sessions.End(ctx, current, session.ReasonLogout); err != nil {
		log.Fatal(err)
	}
	cookie.Clear(w)

	// Output:
	// session.started ""
	// session.refreshed ""
	// alice [Bearer new access token]
	// session.ended "logout"
}
