package web

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
)

// policy is the Content-Security-Policy of the app's pages. It allows scripts
// in the app's own files, and by hash those in the page itself. A nonce would
// need a new page for each load, so pages could not be revalidated with an
// ETag.
type policy map[string][]string // :: directive → sources

// directive is one that Config.CSP can extend.
type directive struct {
	name     string
	defaults []string // the sources that it always has; nil: it is sent only if configured
	check    func(d directive, source string) error
	accepted []string // sources besides origins
	risky    []string // the same, with a warning
}

// directives lists them in the order in which they are sent. default-src is
// not among them: each directive that falls back on it would be extended.
var directives = []directive{
	{"script-src", []string{self}, checkOrigin,
		[]string{"'wasm-unsafe-eval'", "'unsafe-hashes'", "'report-sample'"}, []string{unsafeEval, "blob:"}},
	// Style attributes run no script. Most component libraries use them.
	{"style-src", []string{self, unsafeInline}, checkOrigin,
		[]string{"'unsafe-hashes'", "'report-sample'", "data:", "blob:"}, []string{"https:"}},
	// Scripts make pages of blobs for what they have loaded or generated.
	{"img-src", []string{self, "data:", "blob:"}, checkOrigin, []string{"https:"}, nil},
	{"font-src", []string{self, "data:"}, checkOrigin, []string{"blob:", "https:"}, nil},
	{"connect-src", []string{self}, checkOrigin, []string{"data:", "blob:"}, []string{"https:", "wss:"}},
	{"frame-src", []string{self}, checkOrigin, []string{"data:", "blob:"}, []string{"https:"}},
	{"media-src", []string{self, "blob:"}, checkOrigin, []string{"data:", "mediastream:", "https:"}, nil},
	// The policy applies to a worker from a blob, too.
	{"worker-src", []string{self, "blob:"}, checkOrigin, nil, nil},
	{"manifest-src", []string{self}, checkOrigin, nil, nil},
	{"object-src", []string{none}, checkOrigin, []string{"blob:"}, nil},
	{"base-uri", []string{none}, checkOrigin, nil, nil}, // 'self' in a page with <base>
	{"form-action", []string{self}, checkOrigin, nil, []string{"https:"}},
	{"frame-ancestors", []string{none}, checkOrigin, nil, nil},
	{"require-trusted-types-for", nil, checkKeyword, []string{"'script'"}, nil},
	{"trusted-types", nil, checkTrustedType, []string{"'allow-duplicates'"}, nil},
	{"upgrade-insecure-requests", nil, checkKeyword, nil, nil},
	{"report-uri", nil, checkReportURI, nil, nil},
}

const (
	self         = "'self'"
	none         = "'none'"
	unsafeInline = "'unsafe-inline'"
	unsafeEval   = "'unsafe-eval'"
)

// otherDirectives maps directives that cannot be extended to what to do
// instead.
var otherDirectives = map[string]string{
	"default-src":               "extend the directive for what is loaded, such as img-src",
	"script-src-elem":           "use script-src",
	"script-src-attr":           "use script-src",
	"style-src-elem":            "use style-src",
	"style-src-attr":            "use style-src",
	"child-src":                 "use frame-src or worker-src",
	"prefetch-src":              "browsers do not support it any more",
	"block-all-mixed-content":   "browsers do not need it any more",
	"report-to":                 "use report-uri, which all browsers support",
	"sandbox":                   "it would take the app's origin away, and its cookie with it",
	"plugin-types":              "browsers do not support it any more",
	"navigate-to":               "browsers do not support it",
	"require-sri-for":           "browsers do not support it",
	"report-only":               "use csp_report_only",
	"report_only":               "use csp_report_only",
	"reflected-xss":             "browsers do not support it",
	"referrer":                  "use referrer_policy",
	"permissions-policy":        "use permissions_policy",
	"strict-transport-security": "use hsts",
}

func findDirective(name string) (directive, bool) {
	i := slices.IndexFunc(directives, func(d directive) bool { return d.name == name })
	if i < 0 {
		return directive{}, false
	}
	return directives[i], true
}

// newPolicy returns the default policy with additions. The error joins a
// *ConfigError for each directive and source that is not accepted.
func newPolicy(additions map[string][]string) (policy, error) {
	p := make(policy)
	for _, d := range directives {
		if d.defaults != nil {
			p[d.name] = d.defaults
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(additions)) {
		key := "CSP[" + name + "]"
		d, known := findDirective(name)
		if !known {
			errs = append(errs, configerr.New(key, name, unknownDirective(name)))
			continue
		}
		for _, source := range additions[name] {
			if err := d.check(d, source); err != nil {
				errs = append(errs, configerr.New(key, source, err))
			}
		}
		if err := p.add(d, additions[name]); err != nil {
			errs = append(errs, configerr.New(key, strings.Join(additions[name], " "), err))
		}
	}
	return p, errors.Join(errs...)
}

func unknownDirective(name string) error {
	if instead, ok := otherDirectives[name]; ok {
		return fmt.Errorf("%q cannot be configured: %s", name, instead)
	}
	var names []string
	for _, d := range directives {
		names = append(names, d.name)
	}
	return fmt.Errorf("%q is not a directive that accepts sources; these do: %s", name, strings.Join(names, ", "))
}

// add appends the sources that a directive does not have yet.
func (p policy) add(d directive, sources []string) error {
	all := slices.Clone(d.defaults)
	if slices.Equal(all, []string{none}) && len(sources) > 0 {
		all = nil
	}
	hasHash := slices.ContainsFunc(sources, hashSource.MatchString)
	if hasHash && d.name == "style-src" { // browsers ignore it beside a hash (CSP3, section 6.7.3.2)
		all = slices.DeleteFunc(all, func(s string) bool { return s == unsafeInline })
	}
	for _, source := range sources {
		if !slices.Contains(all, source) {
			all = append(all, source)
		}
	}
	switch {
	case slices.Contains(sources, "'unsafe-hashes'") && !hasHash:
		return errors.New(`'unsafe-hashes' has no effect without the hashes of event handlers or style ` +
			`attributes; cloakroom csp prints them`)
	case hasHash && d.name == "style-src" && slices.Contains(sources, unsafeInline):
		return errors.New("'unsafe-inline' has no effect beside a hash; remove one of them")
	case d.name == "require-trusted-types-for" && len(sources) == 0:
		return errors.New("empty; list 'script', or remove the key")
	}
	p[d.name] = all
	return nil
}

var (
	// originSource matches an origin, or a pattern of origins with a wildcard
	// for the first label or the port, with or without a path (CSP Level 3,
	// section 2.3.1).
	originSource = regexp.MustCompile(`^(https?|wss?)://(\*\.)?([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*|\[[0-9a-fA-F:]+\])` +
		`(:(?:[0-9]{1,5}|\*))?(/[A-Za-z0-9._~!$&()*+=:@%/-]*)?$`)
	hashSource = regexp.MustCompile(`^'sha(?:256-[A-Za-z0-9+/_-]{43}=?|384-[A-Za-z0-9+/_-]{64}|` +
		`512-[A-Za-z0-9+/_-]{86}(?:==)?)'$`)
	bareHost    = regexp.MustCompile(`^(\*\.)?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:[0-9]+)?(/.*)?$`)
	bareKeyword = regexp.MustCompile(`^(self|none|script|report-sample|unsafe-[a-z]+|wasm-unsafe-eval|strict-dynamic|` +
		`allow-duplicates|(nonce|sha256|sha384|sha512)-.*)$`)
	policyName = regexp.MustCompile(`^[A-Za-z0-9#=_/@.%-]+$`)
)

// checkOrigin rejects sources that would disable a directive, in particular
// those that would allow an attacker's script.
func checkOrigin(d directive, source string) error {
	if source == self || slices.Contains(d.defaults, source) && source != none ||
		slices.Contains(d.accepted, source) || slices.Contains(d.risky, source) {
		return nil
	}
	if (d.name == "script-src" || d.name == "style-src") && hashSource.MatchString(source) {
		return nil
	}
	if m := originSource.FindStringSubmatch(source); m != nil {
		return errors.Join(checkWildcard(source, m[2], m[3]), checkPort(source, m[4]),
			checkScheme(d, source, m[1], m[3]))
	}
	return fmt.Errorf("%q %s", source, whyRefused(d, source))
}

// checkWildcard rejects a wildcard for the names of all owners below a domain
// such as com or co.uk.
func checkWildcard(source, wildcard, host string) error {
	if wildcard == "" || host == "localhost" {
		return nil
	}
	suffix, icann := publicsuffix.PublicSuffix(strings.ToLower(host))
	if strings.EqualFold(suffix, host) && (icann || !strings.Contains(host, ".")) {
		return fmt.Errorf("%q covers a whole top-level domain; list the origins", source)
	}
	return nil
}

// checkPort checks the port of a source, with its colon.
func checkPort(source, port string) error {
	if port == "" || port == ":*" {
		return nil
	}
	if n, err := strconv.ParseUint(port[1:], 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q: %q is not a port", source, port[1:])
	}
	return nil
}

// checkScheme checks the scheme of a source that has a host.
func checkScheme(d directive, source, scheme, host string) error {
	switch {
	case strings.HasPrefix(scheme, "ws") && d.name != "connect-src":
		return fmt.Errorf("%q is for WebSockets, which connect-src allows", source)
	case d.name == "script-src" && scheme == "http" && !loopback.IsHost(strings.Trim(host, "[]")):
		return fmt.Errorf("%q: a network attacker could replace the script; use https", source)
	}
	return nil
}

// whyRefused returns the rest of a sentence that begins with the source.
func whyRefused(d directive, source string) string {
	isScript := d.name == "script-src"
	switch {
	case strings.ContainsAny(source, ";, \t\r\n"):
		return "contains a semicolon, a comma or white space, which ends a source; list each source by itself"
	case source == none:
		return "cannot be added to other sources; leave the directive out"
	case source == unsafeInline && isScript:
		return "would run every script that an attacker gets into a page; list the hashes of what the build " +
			"has, which cloakroom csp prints"
	case source == "'strict-dynamic'":
		return "would make browsers ignore 'self' and all origins, so the app's own files would not load"
	case strings.HasPrefix(source, "'nonce-"):
		return "would be the same in each response, and known to attackers; scripts in a page are allowed by " +
			"their hashes"
	case source == "*" && slices.Contains(append(d.accepted, d.risky...), "https:"):
		return "would allow http, too; list the origins, or https: for all of them"
	case source == "*", strings.HasSuffix(source, ":"):
		return "would allow what an attacker has anywhere; list the origins"
	case bareKeyword.MatchString(source):
		return fmt.Sprintf("is a keyword, which needs single quotes: in YAML, write \"'%s'\"", source)
	case bareHost.MatchString(source):
		return "has no scheme; write https://" + source
	}
	return "is not an origin such as https://cdn.example.com"
}

// checkKeyword rejects sources other than those of the table.
func checkKeyword(d directive, source string) error {
	switch {
	case slices.Contains(d.accepted, source):
		return nil
	case len(d.accepted) == 0:
		return fmt.Errorf("%q: %s accepts no sources; write []", source, d.name)
	}
	return fmt.Errorf("%q is not %s", source, strings.Join(d.accepted, " or "))
}

func checkTrustedType(d directive, source string) error {
	if slices.Contains(d.accepted, source) || policyName.MatchString(source) {
		return nil
	}
	return fmt.Errorf("%q is not the name of a policy, or 'allow-duplicates'", source)
}

// checkReportURI accepts a path of this origin, or a URL.
func checkReportURI(_ directive, source string) error {
	u, err := url.Parse(source)
	switch {
	case err != nil, strings.ContainsAny(source, "; ,'\""), strings.ContainsFunc(source, isNotPrintable):
		return fmt.Errorf("%q is not a URL without spaces, commas, semicolons and quotes", source)
	case u.User != nil:
		return errors.New("the URL has a user name or a password, which every browser would see; remove it")
	case u.Scheme == "" && u.Host == "" && strings.HasPrefix(u.Path, "/"), u.Scheme == "https" && u.Host != "",
		u.Scheme == "http" && loopback.IsHost(u.Hostname()):
		return nil
	}
	return fmt.Errorf("%q is neither a path such as /csp-reports nor a URL with https", source)
}

func isNotPrintable(c rune) bool { return c <= ' ' || c > '~' }

// forPage returns the policy for an HTML page. page is nil for any other file:
// the policy of a worker script applies to the worker.
func (p policy) forPage(page []byte) string {
	var b strings.Builder
	b.WriteString("default-src 'self'")
	for _, d := range directives {
		sources, ok := p[d.name]
		if !ok {
			continue
		}
		switch {
		case d.name == "script-src":
			sources = slices.Concat(sources, scriptHashes(page))
		case d.name == "base-uri" && baseElement.Match(page): // the app needs one, as Angular apps do
			sources = withSelf(sources)
		}
		b.WriteString("; " + strings.TrimSuffix(d.name+" "+strings.Join(sources, " "), " "))
	}
	return b.String()
}

// forDevServer returns the policy for a page of a development server, which
// inserts inline scripts. Event handlers still need a hash.
func (p policy) forDevServer() string {
	p = maps.Clone(p)
	isHash := func(s string) bool { return s == "'unsafe-hashes'" || hashSource.MatchString(s) }
	var hashes, others []string
	for _, source := range p["script-src"] {
		if isHash(source) {
			hashes = append(hashes, source)
		} else {
			others = append(others, source)
		}
	}
	p["script-src"] = append(others, unsafeInline) // beside a hash it would have no effect
	p["base-uri"] = withSelf(p["base-uri"])
	if len(hashes) == 0 {
		hashes = []string{none}
	}
	return p.forPage(nil) + "; script-src-attr " + strings.Join(hashes, " ")
}

// withSelf returns sources with 'self'.
func withSelf(sources []string) []string {
	switch {
	case slices.Contains(sources, self):
		return sources
	case slices.Equal(sources, []string{none}):
		return []string{self}
	}
	return append([]string{self}, sources...)
}

var (
	scriptElement = regexp.MustCompile(`(?is)<script(?:[\s/](?:[^>"']|"[^"]*"|'[^']*')*)?>(.*?)</script[\s/>]`)
	baseElement   = regexp.MustCompile(`(?i)<base[\s/>]`)
	// A browser normalizes line ends to \n before it parses (HTML 13.2.3.5),
	// and hashes the result.
	lineEnds = strings.NewReplacer("\r\n", "\n", "\r", "\n")
)

// scriptHashes returns a hash source for each inline script of a page (CSP3
// 2.3.1). It ignores types, since import maps need a hash too, and comments: a
// superfluous hash allows nothing that is not in the page.
func scriptHashes(page []byte) []string {
	var hashes []string
	for _, match := range scriptElement.FindAllSubmatch(page, -1) {
		if len(match[1]) == 0 {
			continue
		}
		if hash := hashOf(lineEnds.Replace(string(match[1]))); !slices.Contains(hashes, hash) {
			hashes = append(hashes, hash)
		}
	}
	return hashes
}

// hashOf returns the hash source of an inline script, style or handler.
func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
