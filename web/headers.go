package web

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
)

const (
	csp           = "Content-Security-Policy"
	cspReportOnly = "Content-Security-Policy-Report-Only"
)

// newHeaders returns the headers of every response, except for the
// Content-Security-Policy. The error joins a *ConfigError for each mistake.
func newHeaders(cfg Config) (http.Header, error) {
	permissions, permissionsErr := permissionsPolicy(cfg.PermissionsPolicy)
	headers := http.Header{
		"X-Content-Type-Options":       {"nosniff"},
		"Referrer-Policy":              {"no-referrer"},
		"Cross-Origin-Opener-Policy":   {"same-origin"},
		"Cross-Origin-Resource-Policy": {"same-origin"},
		"Permissions-Policy":           {permissions},
	}
	// For browsers that do not know frame-ancestors, and with a policy that is
	// not enforced. It has no value for other origins.
	switch ancestors := cfg.CSP["frame-ancestors"]; {
	case len(ancestors) == 0:
		headers.Set("X-Frame-Options", "DENY")
	case slices.Equal(ancestors, []string{self}):
		headers.Set("X-Frame-Options", "SAMEORIGIN")
	}
	if cfg.HSTS != "" { // RFC 6797, section 7.2: not over plain http
		headers.Set("Strict-Transport-Security", cfg.HSTS)
	}
	choose := func(key, header, value string, values []string) error {
		if value == "" {
			return nil
		}
		headers.Set(header, value)
		if !slices.Contains(values, value) {
			return configerr.New(key, value, fmt.Errorf("%q is not one of: %s", value, strings.Join(values, ", ")))
		}
		return nil
	}
	return headers, errors.Join(permissionsErr,
		choose("ReferrerPolicy", "Referrer-Policy", cfg.ReferrerPolicy, ReferrerPolicies()),
		choose("OpenerPolicy", "Cross-Origin-Opener-Policy", cfg.OpenerPolicy, OpenerPolicies()))
}

// ReferrerPolicies returns the values of Config.ReferrerPolicy, the strictest
// first.
func ReferrerPolicies() []string {
	return []string{"no-referrer", "same-origin", "strict-origin", "strict-origin-when-cross-origin",
		"origin", "origin-when-cross-origin", "no-referrer-when-downgrade", "unsafe-url"}
}

// OpenerPolicies returns the values of Config.OpenerPolicy, the strictest
// first.
func OpenerPolicies() []string {
	return []string{"same-origin", "same-origin-allow-popups", "noopener-allow-popups", "unsafe-none"}
}

// sensitiveFeatures lists the features that pages can use by default and that
// give access to a user's devices, location or money.
var sensitiveFeatures = []string{
	"accelerometer", "camera", "display-capture", "geolocation", "gyroscope", "hid",
	"idle-detection", "local-fonts", "magnetometer",
	"microphone", "midi", "payment", "screen-wake-lock", "serial", "usb", "xr-spatial-tracking",
}

// otherFeatures lists the features that are not denied by default.
var otherFeatures = []string{
	"ambient-light-sensor", "attribution-reporting", "autoplay", "bluetooth", "browsing-topics",
	"captured-surface-control", "clipboard-read", "clipboard-write", "compute-pressure", "cross-origin-isolated",
	"deferred-fetch", "deferred-fetch-minimal", "encrypted-media", "fullscreen", "gamepad",
	"identity-credentials-get", "keyboard-map", "language-detector", "language-model", "local-network-access",
	"otp-credentials", "picture-in-picture", "private-state-token-issuance", "private-state-token-redemption",
	"publickey-credentials-create", "publickey-credentials-get", "rewriter", "speaker-selection",
	"storage-access", "summarizer", "sync-xhr", "translator", "unload", "web-share", "window-management", "writer",
}

// permissionsPolicy returns the header that denies all sensitive features but
// those in allowed.
func permissionsPolicy(allowed map[string][]string) (string, error) {
	var errs []error
	var items []string
	for _, feature := range sensitiveFeatures {
		if _, ok := allowed[feature]; !ok {
			items = append(items, feature+"=()")
		}
	}
	for _, feature := range slices.Sorted(maps.Keys(allowed)) {
		key := "PermissionsPolicy[" + feature + "]"
		if !slices.Contains(sensitiveFeatures, feature) && !slices.Contains(otherFeatures, feature) {
			known := slices.Sorted(slices.Values(slices.Concat(sensitiveFeatures, otherFeatures)))
			errs = append(errs, configerr.New(key, feature,
				fmt.Errorf("%q is unknown; the known ones are: %s", feature, strings.Join(known, ", "))))
			continue
		}
		var list []string
		for _, origin := range allowed[feature] {
			m := originSource.FindStringSubmatch(origin)
			switch {
			case origin == "self", origin == "*":
				list = append(list, origin)
			case m != nil && !strings.HasPrefix(m[1], "ws") && m[4] != ":*" && m[5] == "":
				list = append(list, `"`+origin+`"`)
				if err := errors.Join(checkWildcard(origin, m[2], m[3]), checkPort(origin, m[4])); err != nil {
					errs = append(errs, configerr.New(key, origin, err))
				}
			default:
				errs = append(errs, configerr.New(key, origin,
					fmt.Errorf(`%q is not self, * or an origin such as https://maps.example.com; `+
						`[] denies the feature`, origin)))
			}
		}
		items = append(items, feature+"=("+strings.Join(list, " ")+")")
	}
	return strings.Join(items, ", "), errors.Join(errs...)
}

// Warnings returns settings that are valid but weaken the protection of users,
// or break the app. They do not make [New] fail. It reads index.html and
// 404.html.
func (cfg Config) Warnings() []*ConfigError {
	var all []*ConfigError
	warn := func(key, value, fix, format string, args ...any) {
		problem := configerr.New(key, value, fmt.Errorf(format, args...))
		problem.Fix = fix
		all = append(all, problem)
	}
	if cfg.copiesIndex() {
		warn("Fallback", string(FallbackAuto), "use index",
			"404.html is a copy of index.html, so a link into the app gets it with status 404")
	}
	if cfg.CSPReportOnly {
		warn("CSPReportOnly", "true", "remove it when the browsers' reports have no violation of the app",
			"browsers report what the Content-Security-Policy would block, but block nothing: "+
				"a script of an attacker runs")
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.CSP)) {
		d, _ := findDirective(name)
		for _, source := range cfg.CSP[name] {
			if slices.Contains(d.risky, source) {
				warn("CSP["+name+"]", source, "remove it, unless the app does not work without", "%q %s", source,
					risks[name+" "+source])
			}
			if name == "script-src" && isPublishing(source) {
				warn("CSP["+name+"]", source, "name the file, or put it into the app's own files",
					"%q: any user of it can publish scripts there", source)
			}
		}
	}
	if p := cfg.ReferrerPolicy; p == "unsafe-url" || p == "no-referrer-when-downgrade" {
		warn("ReferrerPolicy", p, "use strict-origin-when-cross-origin, or remove it",
			"%q sends the paths and queries of the app to other sites", p)
	}
	if cfg.OpenerPolicy == "unsafe-none" {
		warn("OpenerPolicy", cfg.OpenerPolicy,
			"use same-origin-allow-popups for windows that the app opens, or remove it",
			"%q lets a window that opened the app, or that it opened, navigate the app", cfg.OpenerPolicy)
	}
	return all
}

// risks maps the risky sources of directives to the rest of a sentence that
// begins with the source.
var risks = map[string]string{
	"script-src " + unsafeEval: "lets scripts run text as code, so that an attacker's text can become a script",
	"script-src blob:":         "lets scripts run generated files as code",
	"style-src https:":         "lets a style sheet of any site read what the page shows",
	"connect-src https:":       "lets a script send data to any site",
	"connect-src wss:":         "lets a script send data to any site",
	"frame-src https:":         "lets any site be shown inside the app",
	"form-action https:":       "lets a form send data to any site",
}

// publishing lists hosts that serve what any user has published, with a path
// for each package.
var publishing = []string{
	"cdn.jsdelivr.net", "unpkg.com", "esm.sh", "cdn.skypack.dev", "esm.run", "raw.githack.com", "cdn.statically.io",
	"ajax.googleapis.com", "cdnjs.cloudflare.com", "storage.googleapis.com", "s3.amazonaws.com",
}

// isPublishing reports whether a source allows a whole host of publishing, or
// the hosts of all users of a service, such as https://*.github.io.
func isPublishing(source string) bool {
	m := originSource.FindStringSubmatch(source)
	if m == nil || strings.Trim(m[5], "/") != "" {
		return false
	}
	host := strings.ToLower(m[3])
	suffix, _ := publicsuffix.PublicSuffix(host)
	return slices.Contains(publishing, host) || m[2] != "" && suffix == host && strings.Contains(host, ".")
}
