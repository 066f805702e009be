package devidp

import (
	"cmp"
	"embed"
	"net/http"
	"net/url"
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/pagetext"
)

//go:embed pages
var files embed.FS

var pages = pagetext.Parse(files, "pages/*.html", german, nil)

// serveFile serves a file that the pages load. Their policy allows no other
// origin and nothing inline.
func serveFile(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-cache")
		http.ServeFileFS(w, r, files, "pages/"+name)
	}
}

// show writes a page in the language of the browser. sources is added to its
// Content-Security-Policy.
func (p *Provider) show(w http.ResponseWriter, r *http.Request, status int, page, sources string, data map[string]any) {
	data["Path"] = p.path
	l := pagetext.Preferred(r)
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", string(l))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "strict-origin") // with no-referrer its forms would have the Origin null
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; "+sources)
	w.WriteHeader(status)
	if err := pages[l].ExecuteTemplate(w, page, data); err != nil {
		p.cfg.Logger.Warn("write page", "page", page, "err", err)
	}
}

// showPicker shows the page to pick a user. Its form posts to the same
// authorization request, whether it was pushed or not.
func (p *Provider) showPicker(w http.ResponseWriter, r *http.Request, request *authRequest, q url.Values) {
	var hinted string
	users := p.Users()
	for _, u := range users {
		if u.is(request.loginHint) || u.Sub == request.sub {
			hinted = u.Sub
			break
		}
	}
	last := p.lastPicked(r)
	p.show(w, r, http.StatusOK, "picker.html", formTo(request.redirectURI)+"; frame-ancestors 'none'", map[string]any{
		"Client": request.client.ID, "Scopes": strings.Fields(request.scope), "ACR": request.acr,
		"Users": users, "Last": last, "First": cmp.Or(hinted, last),
		"CSRF": p.formKey(w, r), "Action": p.path + "/authorize?" + q.Encode(),
	})
}

// formTo returns the form-action directive of a page whose form leads to a
// redirect to uri: browsers check redirects against it too.
func formTo(uri string) string {
	u, err := url.Parse(uri)
	if err != nil || uri == "" {
		return "form-action 'self'"
	}
	return "form-action 'self' " + u.Scheme + "://" + u.Host
}

// showFormPost sends an authorization response as a form that submits itself
// (OAuth 2.0 Form Post Response Mode, section 2). It may be shown in a frame,
// as for a login with prompt=none.
func (p *Provider) showFormPost(w http.ResponseWriter, r *http.Request, uri string, response url.Values) {
	p.show(
		w,
		r,
		http.StatusOK,
		"form-post.html",
		formTo(uri)+"; script-src 'self'",
		map[string]any{"URI": uri, "Response": response},
	)
}

func (p *Provider) showSignOut(w http.ResponseWriter, r *http.Request, user User, back, state, clientID string) {
	p.show(w, r, http.StatusOK, "sign-out.html", formTo(back)+"; frame-ancestors 'none'", map[string]any{
		"User": user, "CSRF": p.formKey(w, r), "Back": back, "State": state, "Client": clientID,
	})
}

// showMessage shows a page with a text, which is a key of german.
func (p *Provider) showMessage(
	w http.ResponseWriter, r *http.Request, status int, title, text string, args ...any,
) {
	p.show(
		w,
		r,
		status,
		"message.html",
		"form-action 'none'; frame-ancestors 'none'",
		map[string]any{"Title": title, "Text": pagetext.Text{Key: text, Args: args}},
	)
}
