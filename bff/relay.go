package bff

import (
	"errors"
	"html/template"
	"net/url"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/bff/problem"
)

// relayedParam is the parameter of a response that was relayed.
const relayedParam = "cloakroom_again"

const relayHead = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Signing in</title>`

var relayHTML = template.Must(template.New("relay").Parse(relayHead +
	`<meta http-equiv="refresh" content="0;url={{.}}"><a href="{{.}}">Continue</a></html>`))

// relaySameSite has the browser send the authorization response again, from a
// page of this origin. On the navigation from the provider a browser withholds
// a Strict session cookie. Without it, it would be unknown whose session the
// login of another site is about to replace, or whether a session exists by
// now, and a route would refuse the redirect that follows.
func (a *app) relaySameSite(w *response, resp authResponse) error {
	if resp.relayed {
		return problem.BadCallback.WithCause(errors.New("it was relayed, but not by a page of this origin"))
	}
	q := url.Values{relayedParam: {"1"}, "state": {resp.State}}
	for name, value := range map[string]string{"code": resp.Code, "error": resp.Error,
		"error_description": resp.Description} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if resp.HasIssuer {
		q.Set("iss", resp.Issuer)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("X-Frame-Options", "DENY")
	return relayHTML.Execute(w, a.endpoint("/callback?"+q.Encode()))
}

const relayScript = `document.forms[0].submit()`

var (
	// It has no form-action, which Chromium applies to redirects as well: a
	// login that starts again redirects to the provider.
	relayFormCSP = "default-src 'none'; script-src " + hashSource(relayScript) +
		"; base-uri 'none'; frame-ancestors 'self'"
	relayFormHTML = template.Must(template.New("relay form").Parse(relayHead +
		`<form method="post">` +
		`{{range $name, $value := .}}<input type="hidden" name="{{$name}}" value="{{$value}}">{{end}}` +
		`<noscript><button>Continue</button></noscript></form>` +
		`<script>` + relayScript + `</script></html>`))
)

// writeRelayForm writes a page that posts the authorization response again,
// without the other fields of the form.
func writeRelayForm(w *response, form url.Values) {
	fields := map[string]string{relayedParam: "1"}
	for _, name := range []string{"state", "code", "error", "iss"} {
		if len(form[name]) == 1 {
			fields[name] = form.Get(name)
		} else if len(form[name]) > 1 {
			fields["state"] = "" // it is refused, as it would be from the query
			break
		}
	}
	if text := oidc.CleanDescription(form.Get("error_description")); text != "" {
		fields["error_description"] = text
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", relayFormCSP)
	relayFormHTML.Execute(w, fields)
}
