//go:build unix

package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

const (
	issuer      = "https://id.example.com/realms/main"
	accessSize  = 700
	refreshSize = 40 // of a random token; a JWT is as large as the access token
	idSize      = 900
)

// login returns what a provider issues for a user whom it has not seen before.
func login(refreshIsJWT bool) session.New {
	s := session.New{Issuer: issuer, Subject: uuid(), SID: uuid()}
	now := time.Now()
	given, family := word(6), word(8)
	name, email := fmt.Sprintf("%s %s", title(given), title(family)), fmt.Sprintf("%s.%s@example.com", given, family)
	var id string
	id, s.Claims = jwt("JWT", idSize, fmt.Sprintf(
		`"iss":%q,"sub":%q,"aud":"spa","exp":%d,"iat":%d,"auth_time":%d,"nonce":%q,"sid":%q,`+
			`"name":%q,"preferred_username":%q,"email":%q,"email_verified":true`,
		issuer, s.Subject, now.Unix()+300, now.Unix(), now.Unix()-5, word(22), s.SID, name, given, email))
	s.Tokens = tokens(s.Subject, s.SID, refreshIsJWT)
	s.Tokens.ID = session.Secret(id)
	return s
}

// tokens returns what a provider issues at a refresh.
func tokens(subject, sid string, refreshIsJWT bool) session.Tokens {
	now := time.Now()
	access, _ := jwt("at+jwt", accessSize, fmt.Sprintf(
		`"iss":%q,"sub":%q,"aud":"orders","exp":%d,"iat":%d,"client_id":"spa","scope":"openid email"`, issuer,
		subject, now.Unix()+3600, now.Unix()))
	refresh := word(refreshSize)
	if refreshIsJWT {
		refresh, _ = jwt("JWT", accessSize, fmt.Sprintf(`"iss":%q,"sub":%q,"aud":%q,"exp":%d,"iat":%d,"sid":%q`,
			issuer, subject, issuer, now.Unix()+86400, now.Unix(), sid))
	}
	return session.Tokens{
		Access: session.Secret(access), Refresh: session.Secret(refresh),
		Scope: "openid email", Issued: now, Expiry: now.Add(time.Hour),
	}
}

// jwt returns a JWT of size bytes, and its claims. The signature is as random,
// and as large, as one of RS256; a random jti makes up for what the claims
// lack.
func jwt(typ string, size int, claims string) (string, json.RawMessage) {
	header := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"alg":"RS256","typ":%q,"kid":%q}`, typ,
		"2026-11"))
	signature := make([]byte, 256)
	rand.Read(signature)
	signed := base64.RawURLEncoding.EncodeToString(signature)
	room := base64.RawURLEncoding.DecodedLen(size-len(header)-len(signed)-2) - len(`{,"jti":""}`) - len(claims)
	payload := fmt.Appendf(nil, `{%s,"jti":%q}`, claims, word(room))
	return header + "." + base64.RawURLEncoding.EncodeToString(payload) + "." + signed, payload
}

// raw is how many bytes of tokens a session has.
func raw(s session.New) int {
	return len(s.Tokens.Access.Reveal()) + len(s.Tokens.Refresh.Reveal()) + len(s.Tokens.ID.Reveal())
}

func uuid() string {
	b := make([]byte, 16)
	rand.Read(b)
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// word returns random letters and digits.
func word(size int) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	b := make([]byte, size)
	for i := range b {
		b[i] = alphabet[mathrand.IntN(len(alphabet))]
	}
	return string(b)
}

func title(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
