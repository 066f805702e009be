package devop

import (
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// authRequest is an authorization request whose client and redirect URI are known to be right (OpenID Connect Core 3.1.2.1).
type authRequest struct {
	clientID, redirectURI, state, nonce, scope, challenge, prompt, loginHint, acr, mode, jkt string
	maxAge                                                                                   int // -1: not asked for
	resource                                                                                 []string
	bad                                                                                      string // what is wrong with the rest, for the client
}

// pushedRequest is a request that came by PAR (RFC 9126).
type pushedRequest struct {
	request authRequest
	expires time.Time
}

const cookieName = "devop"

// readRequest reads an authorization request. An error is for the user: there is nobody to redirect to.
func (p *Provider) readRequest(q url.Values) (*Client, authRequest, error) {
	client := p.client(q.Get("client_id"))
	if client == nil {
		return nil, authRequest{}, fmt.Errorf("no client is registered as %q", q.Get("client_id"))
	}
	if !slices.Contains(client.RedirectURIs, q.Get("redirect_uri")) {
		return nil, authRequest{}, fmt.Errorf("the redirect URI %q is not one of the client %s", q.Get("redirect_uri"), client.ID)
	}
	r := authRequest{
		clientID: client.ID, redirectURI: q.Get("redirect_uri"), state: q.Get("state"), nonce: q.Get("nonce"), scope: grantedScope(client, q.Get("scope")),
		challenge: q.Get("code_challenge"), prompt: q.Get("prompt"), loginHint: q.Get("login_hint"), mode: q.Get("response_mode"), jkt: q.Get("dpop_jkt"),
		resource: q["resource"], maxAge: -1, acr: "silver",
	}
	if values := strings.Fields(q.Get("acr_values")); len(values) > 0 {
		r.acr = values[0]
	}
	if s := q.Get("max_age"); s != "" {
		if n, err := strconv.Atoi(s); err == nil && n >= 0 {
			r.maxAge = n
		} else {
			r.bad = "invalid_request"
		}
	}
	switch {
	case q.Get("response_type") != "code":
		r.bad = "unsupported_response_type"
	case !slices.Contains(strings.Fields(q.Get("scope")), "openid"):
		r.bad = "invalid_scope"
	case r.challenge == "" || q.Get("code_challenge_method") != "S256", r.mode != "" && r.mode != "query" && r.mode != "form_post":
		r.bad = "invalid_request"
	}
	return client, r, nil
}

// grantedScope is what of a scope a client may have.
func grantedScope(c *Client, scope string) string {
	if len(c.Scopes) == 0 {
		return scope
	}
	return strings.Join(slices.DeleteFunc(strings.Fields(scope), func(s string) bool { return !slices.Contains(c.Scopes, s) }), " ")
}

// push is the endpoint for pushed authorization requests (RFC 9126 2).
func (p *Provider) push(w http.ResponseWriter, r *http.Request) {
	client, ok := p.authenticate(w, r)
	if !ok {
		return
	}
	r.PostForm.Set("client_id", client.ID)
	_, request, err := p.readRequest(r.PostForm)
	if err != nil || request.bad != "" || r.PostForm.Has("request_uri") {
		oauthError(w, http.StatusBadRequest, "invalid_request")
		return
	}
	uri := "urn:ietf:params:oauth:request_uri:" + rand.Text()
	p.mu.Lock()
	p.stats.PushedRequests++
	p.prune()
	p.pushed[uri] = &pushedRequest{request, time.Now().Add(time.Minute)}
	p.mu.Unlock()
	writeJSON(w, http.StatusCreated, map[string]any{"request_uri": uri, "expires_in": 60})
}

// requested returns what the query asks for, or answers what is wrong with it.
func (p *Provider) requested(w http.ResponseWriter, r *http.Request, spend bool) (*Client, authRequest, bool) {
	q := r.URL.Query()
	if uri := q.Get("request_uri"); uri != "" {
		p.mu.Lock()
		pushed := p.pushed[uri]
		if spend {
			delete(p.pushed, uri)
		}
		p.mu.Unlock()
		if pushed == nil || time.Now().After(pushed.expires) || pushed.request.clientID != q.Get("client_id") {
			http.Error(w, "The pushed request is unknown, used, expired, or another client's.", http.StatusBadRequest)
			return nil, authRequest{}, false
		}
		return p.client(pushed.request.clientID), pushed.request, true
	}
	client, request, err := p.readRequest(q)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return nil, authRequest{}, false
	}
	return client, request, true
}

// authorize answers at once where it can, and shows the page to pick a user where it has to.
func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	client, request, ok := p.requested(w, r, false)
	if !ok {
		return
	}
	p.mu.Lock()
	p.stats.Authorizations++
	s := p.sessionOf(r)
	p.mu.Unlock()
	if s != nil && request.maxAge >= 0 && time.Since(s.authTime) > time.Duration(request.maxAge)*time.Second {
		s = nil
	}
	switch {
	case request.bad != "":
		p.answer(w, r, request, url.Values{"error": {request.bad}})
	case request.prompt == "none" && s == nil:
		p.answer(w, r, request, url.Values{"error": {"login_required"}})
	case s != nil && (request.prompt == "" || request.prompt == "none" || request.prompt == "consent"):
		p.grant(w, r, client, request, s)
	default:
		p.showPicker(w, r, client, request)
	}
}

//go:embed picker.html
var files embed.FS

var picker = template.Must(template.ParseFS(files, "picker.html"))

// pickerStyle is the page's style as the Content-Security-Policy names it.
var pickerStyle = func() string {
	b, _ := files.ReadFile("picker.html")
	_, style, _ := strings.Cut(string(b), "<style>")
	style, _, _ = strings.Cut(style, "</style>")
	sum := sha256.Sum256([]byte(style))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}()

func (p *Provider) showPicker(w http.ResponseWriter, r *http.Request, client *Client, request authRequest) {
	csrf := cookieValue(r, cookieName+"-csrf")
	if csrf == "" {
		csrf = rand.Text()
		p.setCookie(w, cookieName+"-csrf", csrf, http.SameSiteStrictMode)
	}
	back, _ := url.Parse(request.redirectURI)
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "same-origin")
	// Browsers apply form-action to the redirect after the post as well.
	h.Set("Content-Security-Policy", "default-src 'none'; style-src "+pickerStyle+"; img-src data:; base-uri 'none'; frame-ancestors 'none'; form-action 'self' "+back.Scheme+"://"+back.Host)
	picker.Execute(w, map[string]any{
		"Client": client.ID, "Scopes": strings.Fields(request.scope), "Users": p.cfg.Users, "Hint": request.loginHint, "CSRF": csrf, "Action": r.URL.RequestURI(),
	})
}

// pick takes what the user picked.
func (p *Provider) pick(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	csrf := cookieValue(r, cookieName+"-csrf")
	if csrf == "" || r.PostFormValue("csrf") != csrf {
		http.Error(w, "The page is out of date. Go back and load it again.", http.StatusForbidden)
		return
	}
	client, request, ok := p.requested(w, r, true)
	if !ok {
		return
	}
	picked := r.PostFormValue("user")
	i := slices.IndexFunc(p.cfg.Users, func(u User) bool { return u.Sub == picked })
	switch {
	case request.bad != "":
		p.answer(w, r, request, url.Values{"error": {request.bad}})
		return
	case picked == "":
		p.answer(w, r, request, url.Values{"error": {"access_denied"}})
		return
	case i < 0:
		http.Error(w, "There is no such user.", http.StatusBadRequest)
		return
	}
	s := &session{sid: rand.Text(), cookie: rand.Text(), user: p.cfg.Users[i], authTime: time.Now(), clients: make(map[string]bool)}
	p.mu.Lock()
	if before := p.sessionOf(r); before != nil && before.user == s.user { // the same user again: the session goes on
		before.authTime = s.authTime
		s = before
	}
	p.sessions[s.sid] = s
	p.mu.Unlock()
	p.setCookie(w, cookieName, s.cookie, http.SameSiteLaxMode)
	p.grant(w, r, client, request, s)
}

func (p *Provider) grant(w http.ResponseWriter, r *http.Request, client *Client, request authRequest, s *session) {
	value := rand.Text()
	p.mu.Lock()
	p.prune()
	p.codes[value] = &code{request: request, client: client, session: s, expires: time.Now().Add(time.Minute)}
	p.mu.Unlock()
	p.answer(w, r, request, url.Values{"code": {value}})
}

var postBack = template.Must(template.New("").Parse(`<!doctype html><title>Back to the app</title><form method="post" action="{{.URI}}">
{{range $name, $values := .Answer}}{{range $values}}<input type="hidden" name="{{$name}}" value="{{.}}">{{end}}{{end}}<button>Go on</button></form>`))

// answer sends the browser back to the client (RFC 6749 4.1.2), with iss, also of an error (RFC 9207 2).
func (p *Provider) answer(w http.ResponseWriter, r *http.Request, request authRequest, answer url.Values) {
	if request.state != "" {
		answer.Set("state", request.state)
	}
	answer.Set("iss", p.cfg.Issuer)
	if edit := p.hooks.Load().EditCallback; edit != nil {
		edit(answer)
	}
	if request.mode == "form_post" {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		postBack.Execute(w, map[string]any{"URI": request.redirectURI, "Answer": answer})
		return
	}
	u, _ := url.Parse(request.redirectURI)
	q := u.Query()
	for name, values := range answer {
		q[name] = values
	}
	u.RawQuery = q.Encode()
	http.Redirect(w, r, u.String(), http.StatusSeeOther) // 303: what was posted here is not posted there
}

// sessionOf returns the user's session here. The caller holds mu.
func (p *Provider) sessionOf(r *http.Request) *session {
	value := cookieValue(r, cookieName)
	for _, s := range p.sessions {
		if value != "" && s.cookie == value {
			return s
		}
	}
	return nil
}

func cookieValue(r *http.Request, name string) string {
	c, err := r.Cookie(name)
	if err != nil {
		return ""
	}
	return c.Value
}

func (p *Provider) setCookie(w http.ResponseWriter, name, value string, sameSite http.SameSite) {
	http.SetCookie(w, &http.Cookie{Name: name, Value: value, Path: p.path + "/", HttpOnly: true, SameSite: sameSite})
}
