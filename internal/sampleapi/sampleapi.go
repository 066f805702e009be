// Package sampleapi is the API of the demonstration: a coat check, protected by
// package bearer as any API would be. It knows nothing of the broker, and never
// answers with a token.
//
//	GET /api/me       who the token says you are; any user's token
//	GET /api/orders   a few coats; scope orders:read
//	GET /api/admin    scope admin, which the demonstration's users do not have
//	GET /public/time  the time; no token
package sampleapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

// Config says whose tokens the API accepts.
type Config struct {
	Issuer   string       // of the tokens, to the character; see bearer.Config
	Audience string       // what aud has to hold
	Logger   *slog.Logger // nil means slog.Default()
}

// New returns the API. It does no I/O. The error is that of bearer.NewVerifier.
func New(cfg Config) (http.Handler, error) {
	verifier, err := bearer.NewVerifier(bearer.Config{Issuer: cfg.Issuer, Audience: cfg.Audience,
		Realm: "sample-api", Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	handle := func(path string, h http.Handler) {
		mux.Handle("GET "+path, h)
		mux.HandleFunc(path, methodNotAllowed)
	}
	handle("/api/me", verifier.Handler(http.HandlerFunc(me)))
	handle("/api/orders", verifier.Handler(bearer.Require("orders:read")(http.HandlerFunc(orders))))
	handle("/api/admin", verifier.Handler(bearer.Require("admin")(http.HandlerFunc(admin))))
	handle("/public/time", http.HandlerFunc(publicTime))
	mux.HandleFunc("/", notFound)
	return mux, nil
}

func me(w http.ResponseWriter, r *http.Request) {
	token, _ := bearer.FromContext(r.Context())
	if token.IsClient() { // its sub may read like a user's (RFC 9068 section 5)
		writeProblem(w, http.StatusForbidden, "This is for users", "The token speaks for a client and for no user.")
		return
	}
	var user struct {
		Name              string `json:"name"`
		PreferredUsername string `json:"preferred_username"`
	}
	if err := token.Claims.Decode(&user); err != nil {
		writeProblem(w, http.StatusForbidden, "This is for users with a name",
			"The claims name and preferred_username have to be strings.")
		return
	}
	writeJSON(w, struct {
		Message        string    `json:"message"`
		Subject        string    `json:"sub"`
		Scope          string    `json:"scope"`
		TokenID        string    `json:"token_id"` // of no use to who learns it: jti is an identifier, and no secret
		TokenIssuedAt  time.Time `json:"token_issued_at"`
		TokenExpiresAt time.Time `json:"token_expires_at"`
	}{
		Message:        fmt.Sprintf("Hello, %s", cmp.Or(user.Name, user.PreferredUsername, token.Subject)),
		Subject:        token.Subject,
		Scope:          strings.Join(token.Scopes, " "),
		TokenID:        token.ID,
		TokenIssuedAt:  token.IssuedAt.UTC(),
		TokenExpiresAt: token.Expiry.UTC(),
	})
}

// order is a coat on its hook.
type order struct {
	Ticket int    `json:"ticket"`
	Coat   string `json:"coat"`
	Hook   string `json:"hook"`
	Status string `json:"status"`
}

func orders(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string][]order{"orders": {
		{112, "Navy pea coat", "A3", "hanging"},
		{113, "Camel overcoat and a scarf", "A4", "hanging"},
		{117, "Wet umbrella", "Stand 2", "dripping"},
		{121, "Leather jacket", "B1", "handed back"},
	}})
}

func admin(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]int{"hooks": 240, "hooks_taken": 3})
}

// publicTime also reports whether the request has credentials. On a route
// without a token it should not have any.
func publicTime(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, struct {
		Time              time.Time `json:"time"`
		AuthorizationSeen bool      `json:"authorization_seen"`
	}{time.Now().UTC(), len(r.Header["Authorization"]) > 0})
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	writeProblem(w, http.StatusNotFound, "There is nothing at this address", "")
}

func methodNotAllowed(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Allow", "GET, HEAD")
	writeProblem(w, http.StatusMethodNotAllowed, "This address does not take this method", "")
}

func writeJSON(w http.ResponseWriter, v any) {
	write(w, http.StatusOK, "application/json", v)
}

// writeProblem answers with a problem (RFC 9457).
func writeProblem(w http.ResponseWriter, status int, title, detail string) {
	write(w, status, "application/problem+json", struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail,omitempty"`
	}{"about:blank", title, status, detail})
}

func write(w http.ResponseWriter, status int, contentType string, v any) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // an error here is a client that has left
}
