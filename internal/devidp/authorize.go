package devidp

import (
	"cmp"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

var prompts = []string{"none", "login", "consent", "select_account"}

// defaultACRValues is what an empty Config.ACRValues means.
var defaultACRValues = []string{"silver", "gold"}

const (
	codeLife    = time.Minute
	codeMemory  = 10 * time.Minute // how long an expired code is remembered, to detect its reuse
	pushedLife  = time.Minute      // until the browser brings a pushed request
	patience    = 10 * time.Minute // for the user to pick, after a pushed request was brought
	proofLife   = 5 * time.Minute  // of DPoP proofs and their nonces
	clockSkew   = time.Minute
	longestName = 255
)

// authRequest is an authorization request with a valid client and redirect URI
// (OpenID Connect Core, section 3.1.2.1).
type authRequest struct {
	client      *Client
	redirectURI string
	mode        string // query or form_post
	state       string
	nonce       string
	scope       string // the granted part of the requested scope
	resource    []string
	challenge   string // S256
	jkt         string // of the DPoP key that the code is bound to; empty: none
	prompt      []string
	acr         string        // requested; empty: none
	maxAge      time.Duration // -1: not requested
	loginHint   string
	sub         string // of the id_token_hint; empty: none

	fault *oauthError // reported to the client; nil: the request is valid
	uri   string      // the request_uri of a pushed request
}

// session is a user's session at the provider. It ends at expires, or with
// EndSession.
type session struct {
	sid      string
	cookie   string
	user     User
	authTime time.Time
	acr      string
	expires  time.Time
	clients  map[string]bool // those with tokens of this session
}

// code is an authorization code. It is valid for a minute and for one use.
type code struct {
	request  *authRequest
	session  *session
	authTime time.Time // at the time of the request; the session may be renewed later
	acr      string
	expires  time.Time
	used     bool
	grant    *grant // nil until it is redeemed
}

// readRequest parses an authorization request. An error is shown to the user,
// because no redirect URI is known to be valid.
func (p *Provider) readRequest(q url.Values) (*authRequest, error) {
	if len(q["client_id"]) > 1 || len(q["redirect_uri"]) > 1 {
		return nil, errors.New("client_id or redirect_uri occurs twice")
	}
	client := p.client(q.Get("client_id"))
	if client == nil {
		return nil, fmt.Errorf("no client is registered as %q", q.Get("client_id"))
	}
	if q.Has("request") {
		signed, err := p.readSigned(client, q)
		if err != nil {
			return nil, err
		}
		q = signed
	} else if client.SignsRequests {
		return nil, errors.New("the client must sign its requests, and this one is not signed")
	}
	if uri := q.Get("redirect_uri"); uri == "" || !slices.Contains(client.RedirectURIs, uri) {
		return nil, fmt.Errorf("the redirect_uri %q is not registered for the client %s", uri, client.ID)
	}
	r := &authRequest{
		client: client, redirectURI: q.Get("redirect_uri"), mode: q.Get("response_mode"),
		state: q.Get("state"), nonce: q.Get("nonce"), challenge: q.Get("code_challenge"), jkt: q.Get("dpop_jkt"),
		scope: among(among(q.Get("scope"), client.Scopes), p.cfg.Scopes), resource: q["resource"],
		prompt: strings.Fields(q.Get("prompt")), maxAge: -1, loginHint: q.Get("login_hint"),
	}
	r.fault = p.complete(r, q)
	return r, nil
}

// complete checks the parameters of an authorization request whose redirect URI
// is valid, and sets the rest of r. The client is told of the fault.
func (p *Provider) complete(r *authRequest, q url.Values) *oauthError {
	switch r.mode {
	case "", "query", "form_post":
	default:
		r.mode = "query"
		return &oauthError{"invalid_request", "response_mode must be query or form_post"}
	}
	if name := repeated(q); name != "" { // RFC 6749 3.1
		return &oauthError{"invalid_request", "a parameter occurs twice: " + name}
	}
	if q.Get("response_type") != "code" {
		return &oauthError{"unsupported_response_type", "response_type must be code"}
	}
	if !slices.Contains(strings.Fields(q.Get("scope")), "openid") {
		return &oauthError{"invalid_scope", "scope must contain openid"}
	}
	if (q.Get("code_challenge_method") != "S256" || len(r.challenge) != 43) &&
		!p.hooks.Load().SkipPKCE { // RFC 7636 4.2
		return &oauthError{"invalid_request", "PKCE is required: code_challenge with the method S256"}
	}
	for _, prompt := range r.prompt {
		if !slices.Contains(prompts, prompt) || prompt == "none" && len(r.prompt) > 1 {
			return &oauthError{"invalid_request", "prompt has an unknown value, or none with others"}
		}
	}
	if s := q.Get("max_age"); s != "" {
		seconds, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			return &oauthError{"invalid_request", "max_age must be a number of seconds"}
		}
		r.maxAge = time.Duration(seconds) * time.Second
	}
	if !areResources(r.resource) {
		return &oauthError{"invalid_target", "resource must be an absolute URI without a fragment"}
	}
	// acr_values is in the client's order of preference, and voluntary (OpenID
	// Connect Core 3.1.2.1).
	requested := strings.Fields(q.Get("acr_values"))
	isOffered := func(acr string) bool { return slices.Contains(p.ACRValues(), acr) }
	if i := slices.IndexFunc(requested, isOffered); i >= 0 {
		r.acr = requested[i]
	}
	if hint := q.Get("id_token_hint"); hint != "" {
		claims, err := p.readOwnIDToken(hint)
		if err != nil {
			return &oauthError{"invalid_request", "the id_token_hint is not an ID token of this provider"}
		}
		r.sub = claims.Subject
	}
	return nil
}

// among returns the allowed part of a scope. An empty list allows all.
func among(scope string, allowed []string) string {
	var granted []string
	for s := range strings.FieldsSeq(scope) {
		if (len(allowed) == 0 || slices.Contains(allowed, s)) && !slices.Contains(granted, s) {
			granted = append(granted, s)
		}
	}
	return strings.Join(granted, " ")
}

// areResources reports whether all are valid resource parameters (RFC 8707
// section 2).
func areResources(resources []string) bool {
	for _, raw := range resources {
		if u, err := url.Parse(raw); err != nil || !u.IsAbs() || strings.Contains(raw, "#") {
			return false
		}
	}
	return true
}

// satisfies reports whether a session satisfies the request without
// interaction. The caller holds mu.
func (p *Provider) satisfies(s *session, r *authRequest) bool {
	switch {
	case s == nil:
		return false
	case r.maxAge == 0 || r.maxAge > 0 && time.Since(s.authTime) > r.maxAge:
		return false
	}
	user, acrValues := p.latest(s.user), p.ACRValues()
	switch {
	case user == nil || user.ACR != "" && user.ACR != s.acr:
		return false // the users were changed
	case slices.Index(acrValues, r.acr) > slices.Index(acrValues, s.acr):
		return false
	case r.sub != "" && r.sub != s.user.Sub:
		return false
	case r.loginHint != "" && !user.is(r.loginHint):
		return false
	}
	return true
}

// authorize is the authorization endpoint. A request comes by GET or by POST
// (OpenID Connect Core 3.1.2.1); with a csrf parameter it is the form of the
// page to pick a user.
func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if r.Method == http.MethodPost {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err := r.ParseForm(); err != nil {
			p.showMessage(w, r, http.StatusBadRequest, "That did not work", "The form cannot be read.")
			return
		}
		if !r.PostForm.Has("csrf") {
			q = r.PostForm
		}
	}
	request, err := p.requested(q)
	if err != nil {
		p.showMessage(w, r, http.StatusBadRequest, "That did not work",
			"The app's request is invalid: %s.", err)
		return
	}
	if r.Method == http.MethodPost && r.PostForm.Has("csrf") {
		p.pick(w, r, request)
		return
	}
	p.mu.Lock()
	p.stats.Authorizations++
	s := p.sessionOf(r)
	satisfied := p.satisfies(s, request)
	prepared := p.takePrepared(request)
	p.mu.Unlock()
	mayAsk := !slices.Contains(request.prompt, "none")
	mustAsk := mayAsk && len(request.prompt) > 0
	switch {
	case request.fault != nil:
		p.refuse(w, r, request, request.fault)
	case prepared != nil:
		p.signInAndApprove(w, r, request, *prepared)
	case satisfied && !mustAsk:
		p.approve(w, r, request, s)
	case !mayAsk:
		p.refuse(w, r, request, &oauthError{"login_required", "the user must sign in"})
	default:
		p.showPicker(w, r, request, q)
	}
}

// pick handles the form of the picker.
func (p *Provider) pick(w http.ResponseWriter, r *http.Request, request *authRequest) {
	if !p.isOwnForm(r) {
		p.showMessage(
			w,
			r,
			http.StatusForbidden,
			"That did not work",
			"The page is out of date. Go back and load it again.",
		)
		return
	}
	picked := r.PostForm.Get("user")
	if r.PostForm.Has("claims") && !r.PostForm.Has("user") {
		user, err := UserFromClaims([]byte(r.PostForm.Get("claims")), p.ACRValues())
		switch {
		case request.fault != nil:
			p.refuse(w, r, request, request.fault)
		case err != nil:
			p.showMessage(w, r, http.StatusBadRequest, "That did not work", "The claims: %s.", err)
		default:
			p.signInAndApprove(w, r, request, user)
		}
		return
	}
	user, err := p.User(picked)
	switch {
	case request.fault != nil:
		p.refuse(w, r, request, request.fault)
	case picked == "":
		p.refuse(w, r, request, &oauthError{"access_denied", "the user refused"})
	case err != nil:
		p.showMessage(w, r, http.StatusBadRequest, "That did not work", "There is no such user.")
	default:
		p.setCookie(w, p.cookieName+"-last", base64.RawURLEncoding.EncodeToString([]byte(picked)))
		p.signInAndApprove(w, r, request, user)
	}
}

// lastPicked returns the user whom this browser picked last, or "".
func (p *Provider) lastPicked(r *http.Request) string {
	sub, err := base64.RawURLEncoding.DecodeString(cookieValue(r, p.cookieName+"-last"))
	if err != nil {
		return ""
	}
	return string(sub)
}

// signInAndApprove signs a user in and redirects to the client with a code.
func (p *Provider) signInAndApprove(w http.ResponseWriter, r *http.Request, request *authRequest, user User) {
	s := p.signIn(r, user, request.acr)
	p.setCookie(w, p.cookieName, s.cookie)
	p.approve(w, r, request, s)
}

// signIn starts a session, or continues the one of the same user in this
// browser.
func (p *Provider) signIn(r *http.Request, user User, acr string) *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prune()
	s := p.sessionOf(r)
	if s == nil || !reflect.DeepEqual(p.latest(s.user), &user) {
		s = &session{sid: rand.Text(), cookie: rand.Text(), user: user, clients: make(map[string]bool)}
		p.sessions[s.cookie] = s
	}
	now := time.Now()
	s.authTime, s.acr, s.expires = now, cmp.Or(user.ACR, acr, p.ACRValues()[0]), now.Add(p.cfg.RefreshTokenTTL)
	return s
}

// approve redirects to the client with a code.
func (p *Provider) approve(w http.ResponseWriter, r *http.Request, request *authRequest, s *session) {
	value := rand.Text()
	p.mu.Lock()
	p.prune()
	c := &code{request: request, session: s, authTime: s.authTime, acr: s.acr, expires: time.Now().Add(codeLife)}
	if request.acr != "" && s.user.ACR == "" {
		c.acr = request.acr // satisfied, possibly by a stronger one
	}
	p.codes[value] = c
	p.mu.Unlock()
	p.respond(w, r, request, url.Values{"code": {value}})
}

func (p *Provider) refuse(w http.ResponseWriter, r *http.Request, request *authRequest, fault *oauthError) {
	p.respond(w, r, request, url.Values{"error": {fault.code}, "error_description": {fault.description}})
}

// respond redirects the browser to the client (RFC 6749, section 4.1.2).
// Success and error responses have iss (RFC 9207, section 2).
func (p *Provider) respond(w http.ResponseWriter, r *http.Request, request *authRequest, response url.Values) {
	if request.uri != "" {
		p.mu.Lock()
		pushed := p.pushed[request.uri]
		delete(p.pushed, request.uri)
		p.mu.Unlock()
		if pushed == nil {
			p.showMessage(
				w,
				r,
				http.StatusBadRequest,
				"That did not work",
				"You have already answered this on another page.",
			)
			return
		}
	}
	if request.state != "" {
		response.Set("state", request.state)
	}
	response.Set("iss", p.cfg.Issuer)
	if edit := p.hooks.Load().EditCallback; edit != nil {
		edit(response)
	}
	if request.mode == "form_post" {
		p.showFormPost(w, r, request.redirectURI, response)
		return
	}
	// 303, so that the browser does not repeat its POST at the client (RFC 9700
	// section 4.12).
	redirect(w, r, request.redirectURI, response)
}

// redirect redirects to a registered URI with added parameters.
func redirect(w http.ResponseWriter, r *http.Request, uri string, parameters url.Values) {
	u, _ := url.Parse(uri) // Config.check has parsed it
	q := u.Query()
	for name, values := range parameters {
		q[name] = values
	}
	u.RawQuery = q.Encode()
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	http.Redirect(w, r, u.String(), http.StatusSeeOther)
}

// sessionOf returns the session of this browser, or nil. The caller holds mu.
func (p *Provider) sessionOf(r *http.Request) *session {
	s := p.sessions[cookieValue(r, p.cookieName)]
	if s == nil || time.Now().After(s.expires) {
		return nil
	}
	return s
}

// formKey returns the CSRF token of this browser's forms, which is stored in a
// cookie. The cookie is Lax because the browser comes here from the client's
// site: a second tab must find the cookie and not overwrite it.
func (p *Provider) formKey(w http.ResponseWriter, r *http.Request) string {
	key := cookieValue(r, p.cookieName+"-form")
	if key == "" {
		key = rand.Text()
		p.setCookie(w, p.cookieName+"-form", key)
	}
	return key
}

// isOwnForm reports whether a form was posted by one of the provider's pages in
// this browser.
func (p *Provider) isOwnForm(r *http.Request) bool {
	key := cookieValue(r, p.cookieName+"-form")
	return key != "" && subtle.ConstantTimeCompare([]byte(key), []byte(r.PostForm.Get("csrf"))) == 1
}

func cookieValue(r *http.Request, name string) string {
	c, err := r.Cookie(name)
	if err != nil {
		return ""
	}
	return c.Value
}

func (p *Provider) setCookie(w http.ResponseWriter, name, value string) {
	http.SetCookie(
		w,
		&http.Cookie{Name: name, Value: value, Path: p.cfg.CookiePath, HttpOnly: true,
			SameSite: http.SameSiteLaxMode},
	)
}
