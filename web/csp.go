package web

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
)

// policy is the Content-Security-Policy of the app's pages. It allows scripts
// in the app's own files, and by hash those in the page itself. A nonce would
// need a new page for each load, so pages could not be revalidated with an
// ETag.
type policy struct {
	sources      map[string]string // :: directive → sources, separated by spaces
	formAction   string
	trustedTypes bool
}

// directives lists those that Config.Sources can extend, and their default
// sources.
var directives = map[string]string{
	"script-src":  "'self'",
	"style-src":   "'self' 'unsafe-inline'", // style attributes run no script; most component libraries use them
	"img-src":     "'self' data:",
	"font-src":    "'self' data:",
	"connect-src": "'self'",
	"frame-src":   "'self'",
	"media-src":   "'self'",
	"worker-src":  "'self'",
}

func newPolicy(cfg Config) (policy, error) {
	p := policy{sources: maps.Clone(directives), formAction: "'self'", trustedTypes: cfg.TrustedTypes}
	var errs []error
	for _, origin := range cfg.FormAction {
		if !originSource.MatchString(origin) {
			errs = append(errs, configerr.New("FormAction", origin,
				fmt.Errorf("%q is not an origin such as https://id.example.com", origin)))
			continue
		}
		p.formAction += " " + origin
	}
	for _, directive := range slices.Sorted(maps.Keys(cfg.Sources)) {
		if _, known := directives[directive]; !known {
			errs = append(errs, configerr.New("Sources", directive,
				fmt.Errorf("%q is not a directive that accepts sources; these do: %s", directive,
					strings.Join(slices.Sorted(maps.Keys(directives)), ", "))))
			continue
		}
		for _, source := range cfg.Sources[directive] {
			if err := checkSource(directive, source); err != nil {
				errs = append(errs, configerr.New("Sources["+directive+"]", source, err))
				continue
			}
			p.sources[directive] += " " + source
		}
	}
	return p, errors.Join(errs...)
}

// originSource matches an origin, or a pattern of origins with a wildcard for
// the first label (CSP Level 3, section 2.3.1).
var originSource = regexp.MustCompile(
	`^(https?|wss?)://(\*\.)?([A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?$`)

// checkSource rejects sources that would disable a directive, in particular
// those that would allow an attacker's script.
func checkSource(directive, source string) error {
	switch {
	case originSource.MatchString(source):
		return nil
	case directive == "script-src" && source == "'wasm-unsafe-eval'": // WebAssembly, not eval
		return nil
	case directive != "script-src" && (source == "data:" || source == "blob:"):
		return nil
	}
	return fmt.Errorf("%q is not an origin such as https://cdn.example.com", source)
}

// forPage returns the policy for an HTML page. page is nil for any other file:
// the policy of a worker script applies to the worker.
func (p policy) forPage(page []byte) string {
	var b strings.Builder
	b.WriteString("default-src 'self'")
	for _, directive := range slices.Sorted(maps.Keys(p.sources)) {
		fmt.Fprintf(&b, "; %s %s", directive, p.sources[directive])
		if directive == "script-src" {
			for _, hash := range scriptHashes(page) {
				b.WriteString(" " + hash)
			}
		}
	}
	base := "'none'"
	if baseElement.Match(page) { // the app needs one, as Angular apps do
		base = "'self'"
	}
	fmt.Fprintf(&b, "; object-src 'none'; base-uri %s; form-action %s; frame-ancestors 'none'", base, p.formAction)
	if p.trustedTypes {
		b.WriteString("; require-trusted-types-for 'script'")
	}
	return b.String()
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
		sum := sha256.Sum256([]byte(lineEnds.Replace(string(match[1]))))
		hash := "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
		if !slices.Contains(hashes, hash) {
			hashes = append(hashes, hash)
		}
	}
	return hashes
}

// sensitiveFeatures lists the features that pages can use by default and that
// give access to a user's devices, location or money.
var sensitiveFeatures = []string{
	"accelerometer", "camera", "display-capture", "geolocation", "gyroscope", "hid",
	"idle-detection", "local-fonts", "magnetometer",
	"microphone", "midi", "payment", "screen-wake-lock", "serial", "usb", "xr-spatial-tracking",
}

func permissionsPolicy(used []string) (string, error) {
	var errs []error
	for _, feature := range used {
		if !slices.Contains(sensitiveFeatures, feature) {
			errs = append(errs, configerr.New("Permissions", feature,
				fmt.Errorf("%q is unknown; the known ones are: %s", feature,
					strings.Join(sensitiveFeatures, ", "))))
		}
	}
	var denied []string
	for _, feature := range sensitiveFeatures {
		if !slices.Contains(used, feature) {
			denied = append(denied, feature+"=()")
		}
	}
	return strings.Join(denied, ", "), errors.Join(errs...)
}
