package devtools

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/pagetext"
)

// violation is a kind of violation of the Content-Security-Policy, and how
// often it was reported.
type violation struct {
	Last      time.Time
	Count     int
	Directive string
	Blocked   string // a URL, or inline, eval and their like
	Page      string
	Source    string // the file and line that caused it; empty: unknown
	Advice    pagetext.Text
	Setting   string // what to add to the configuration; empty: nothing helps
	enforced  bool
}

// Enforced reports whether the browser blocked it.
func (v violation) Enforced() bool { return v.enforced }

// reports are the violations that browsers reported.
type reports struct {
	mu  sync.Mutex // guards all
	all []violation
}

const (
	maxViolations = 50
	maxReported   = 300 // bytes of a value
)

// add counts a violation. If there are too many kinds, the oldest one goes.
func (r *reports) add(v violation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.all, func(o violation) bool {
		return o.Directive == v.Directive && o.Blocked == v.Blocked
	})
	if i >= 0 {
		v.Count = r.all[i].Count
		r.all = slices.Delete(r.all, i, i+1)
	}
	if len(r.all) >= maxViolations {
		r.all = r.all[1:]
	}
	v.Count++
	r.all = append(r.all, v)
}

// latest returns the violations, the latest first.
func (r *reports) latest() []violation {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Clone(r.all)
	slices.Reverse(all)
	return all
}

// cspReport is the body of a report (CSP Level 3, section 5.3).
type cspReport struct {
	Body struct {
		DocumentURI        string `json:"document-uri"`
		EffectiveDirective string `json:"effective-directive"`
		ViolatedDirective  string `json:"violated-directive"`
		BlockedURI         string `json:"blocked-uri"`
		SourceFile         string `json:"source-file"`
		LineNumber         int    `json:"line-number"`
		Disposition        string `json:"disposition"`
	} `json:"csp-report"`
}

// report takes a report of a browser.
func (t *Tools) report(w http.ResponseWriter, r *http.Request) {
	var report cspReport
	if err := json.NewDecoder(r.Body).Decode(&report); err != nil {
		http.Error(w, "this is not a report of a violation", http.StatusBadRequest)
		return
	}
	b := report.Body
	directive, _, _ := strings.Cut(b.EffectiveDirective, " ")
	if directive == "" { // of an older browser, which sends the sources too
		directive, _, _ = strings.Cut(b.ViolatedDirective, " ")
	}
	v := violation{
		Last: time.Now(), Directive: shorten(directive), Blocked: shorten(withoutQuery(b.BlockedURI)),
		Page: shorten(pathOf(b.DocumentURI)), enforced: b.Disposition == "enforce",
	}
	if b.SourceFile != "" {
		v.Source = shorten(pathOf(b.SourceFile))
	}
	v.Advice, v.Setting = advise(v.Directive, v.Blocked)
	t.reports.add(v)
	w.WriteHeader(http.StatusNoContent)
}

func shorten(text string) string {
	if len(text) > maxReported {
		return strings.ToValidUTF8(text[:maxReported], "") + "…"
	}
	return text
}

// withoutQuery returns a URL without what may be secret in it.
func withoutQuery(raw string) string {
	raw, _, _ = strings.Cut(raw, "?")
	raw, _, _ = strings.Cut(raw, "#")
	return raw
}

// pathOf returns the path of a URL.
func pathOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Path == "" {
		return withoutQuery(raw)
	}
	return u.Path
}

// advise explains a violation. setting is what to add to the configuration.
func advise(directive, blocked string) (advice pagetext.Text, setting string) {
	base := strings.TrimSuffix(strings.TrimSuffix(directive, "-elem"), "-attr")
	text := pagetext.Plain
	switch {
	case blocked == "inline" && base == "script-src" && strings.HasSuffix(directive, "-attr"):
		return text("An attribute such as onclick or onload has a script. Set the handler with addEventListener, " +
			"or let the framework set it."), ""
	case blocked == "inline" && base == "script-src":
		return text("The page has an inline script. Development servers insert some. In a build, inline scripts " +
			"in index.html are allowed by their hash."), ""
	case blocked == "wasm-eval":
		return text("The page compiles WebAssembly."), "script-src: [\"'wasm-unsafe-eval'\"]"
	case blocked == "eval":
		return text("A script calls eval or new Function. Development builds often do (webpack: set devtool to " +
			"source-map). A production build must not."), ""
	case blocked == "inline":
		return text("The page has an inline style that the policy does not allow."), ""
	case blocked == "data" || blocked == "blob":
		return pagetext.Text{Key: "The page loads a %s: URL.", Args: []any{blocked}}, base + ": [\"" + blocked + ":\"]"
	}
	u, err := url.Parse(blocked)
	switch {
	case err != nil || u.Host == "":
		return text("The policy does not allow it."), ""
	case u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1":
		return adviseLocal(u), ""
	case directive == "frame-ancestors" || directive == "form-action" || directive == "base-uri":
		return text("Cloakroom sets this directive for safety."), ""
	}
	advice = text("The page loads something of another origin. Copy the file into the app, or allow the origin.")
	if base == "connect-src" {
		advice = text("The page calls another origin. If it is your API, make it a route: then it gets the token, " +
			"and needs no CORS. Otherwise allow the origin.")
	}
	return advice, base + ": [" + u.Scheme + "://" + u.Host + "]"
}

// adviseLocal explains a violation by a URL of another server on this machine.
func adviseLocal(u *url.URL) pagetext.Text {
	if scheme, isSocket := map[string]string{"ws": "http", "wss": "https"}[u.Scheme]; isSocket {
		return pagetext.Text{
			Key: "It is a WebSocket to another server on this machine. If it is the development server's " +
				"connection for hot reload, ignore this. With webpack, <code>devServer.client.webSocketURL: " +
				"\"auto://0.0.0.0:0/ws\"</code> leads it through this origin. If it is an API, call it by a path " +
				"of this origin: <code>--api /api=%s://%s</code>",
			Args: []any{scheme, u.Host},
		}
	}
	return pagetext.Text{
		Key: "It is another server on this machine. Call it by a path of this origin: " +
			"<code>--api /api=%s://%s</code>",
		Args: []any{u.Scheme, u.Host},
	}
}
