package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/configerr"
)

// Error is one mistake in a configuration.
type Error struct {
	// Source is where the mistake is: a file, with a line where possible, or an
	// environment variable. It is empty for a mistake that was found after
	// reading.
	Source string
	Key    string // such as oidc.issuer or routes[0].path; empty: the whole source
	Value  string // as configured, [redacted] if secret; empty: none
	Err    error  // the problem; its text quotes the value where that helps
	Fix    string // what to do, such as "remove it"; empty: Err says so, or it is obvious
}

// Error returns a line with the place, the problem and the fix.
func (e *Error) Error() string {
	text := e.Err.Error()
	if e.Fix != "" {
		text += "; " + e.Fix
	}
	switch {
	case e.Source == "" && e.Key == "":
		return text
	case e.Source == "":
		return e.Key + ": " + text
	case e.Key == "", strings.TrimSuffix(e.Source, "_FILE") == variable(e.Key):
		return e.Source + ": " + text
	default:
		return e.Source + ": " + e.Key + ": " + text
	}
}

func (e *Error) Unwrap() error { return e.Err }

// Errors lists all mistakes in a configuration. Its text has one line for each.
type Errors []*Error

func (e Errors) Error() string { return strings.Join(e.Lines(), "\n") }

// Lines returns the text of each problem.
func (e Errors) Lines() []string {
	lines := make([]string, len(e))
	for i, problem := range e {
		lines[i] = problem.Error()
	}
	return lines
}

func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, problem := range e {
		errs[i] = problem
	}
	return errs
}

// Join returns all mistakes in errs as Errors, sorted by key. It returns nil if
// every err is nil.
func Join(errs ...error) error {
	var all Errors
	for _, err := range errs {
		all = append(all, fromError(err)...)
	}
	slices.SortStableFunc(all, func(a, b *Error) int { return strings.Compare(a.Key, b.Key) })
	return all.orNil()
}

// Merge joins the Errors of Load with those of a check of the loaded Config. It
// drops errors of the check for keys that Load could not read: they would be
// reported as missing.
func Merge(read, checked error) error {
	all := fromError(read)
	unread := slices.Clone(all)
	for _, problem := range fromError(checked) {
		isUnread := func(e *Error) bool { return problem.Key != "" && strings.Contains(e.Key, problem.Key) }
		if !slices.ContainsFunc(unread, isUnread) {
			all = append(all, problem)
		}
	}
	return all.orNil()
}

// IsTransient reports whether the same configuration may be valid later: only
// the provider could not be reached, or files could not be read. A missing file
// is a mistake.
func IsTransient(err error) bool {
	var problems Errors
	if errors.As(err, &problems) {
		return !slices.ContainsFunc(problems, func(p *Error) bool { return !IsTransient(p.Err) })
	}
	file, certificate := (*fs.PathError)(nil), (*tls.CertificateVerificationError)(nil)
	switch {
	case errors.As(err, &file):
		return !errors.Is(err, fs.ErrNotExist)
	case errors.As(err, &certificate):
		return false // oidc.ca_file is wrong
	}
	return errors.Is(err, oidc.ErrUnavailable)
}

func (e *Errors) add(key, format string, args ...any) {
	*e = append(*e, &Error{Key: key, Err: fmt.Errorf(format, args...)})
}

func (e *Errors) addWithFix(key, fix, format string, args ...any) {
	*e = append(*e, &Error{Key: key, Err: fmt.Errorf(format, args...), Fix: fix})
}

// orNil returns e as an error: nil if it is empty.
func (e Errors) orNil() error {
	if len(e) == 0 {
		return nil
	}
	return e
}

// withValues sets the values to those in c, as they are configured.
func (e Errors) withValues(c *Config) Errors {
	for _, problem := range e {
		if problem.Value != "" {
			continue
		}
		if value := valueText(reflect.ValueOf(c).Elem(), problem.Key); value != "" {
			problem.Value = value
		}
	}
	return e
}

// valueText returns the value of a key below v; empty if there is none.
func valueText(v reflect.Value, key string) string {
	if key == "" {
		switch {
		case v.IsZero():
			return ""
		case isSecret(v):
			return "[redacted]"
		case v.Kind() == reflect.Pointer:
			return fmt.Sprint(v.Elem().Interface())
		default:
			return fmt.Sprint(v.Interface())
		}
	}
	name, rest, _ := strings.Cut(key, ".")
	name, index, indexed := strings.Cut(strings.TrimSuffix(name, "]"), "[")
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return ""
	}
	f, ok := fieldNamed(v, name)
	if !ok {
		return ""
	}
	if indexed {
		i, err := strconv.Atoi(index)
		if err != nil || f.Kind() != reflect.Slice || i < 0 || i >= f.Len() {
			return ""
		}
		f = f.Index(i)
	}
	if rest == "" && (f.Kind() == reflect.Struct || isStructSlice(f)) { // a section has no value of its own
		return ""
	}
	return valueText(f, rest)
}

// fromError returns the errors that Join has joined.
func fromError(err error) Errors {
	var all Errors
	for _, e := range configerr.All(err) {
		var problem *Error
		if !errors.As(e, &problem) {
			problem = &Error{Err: e}
		}
		all = append(all, problem)
	}
	return all
}

// fieldErrors returns the errors of a constructor. key maps the field of a
// *configerr.Error to the key that configures it.
func fieldErrors(err error, key func(field string) string) Errors {
	var all Errors
	for _, e := range configerr.All(err) {
		problem := &Error{Err: e}
		if field, ok := errors.AsType[*configerr.Error](e); ok {
			problem = &Error{Key: key(field.Key), Value: field.Value, Err: field.Err, Fix: field.Fix}
		}
		all = append(all, problem)
	}
	return all
}

// storeKey returns the key that configures a field of tokenstore.RedisConfig.
func storeKey(field string) string { return "store." + snakeCase(field) }

// frontendKey returns the key that configures a field of web.Config. The fields
// without a key of their own are derived from valid keys.
func frontendKey(field string) string {
	name, entry, isMap := strings.Cut(strings.TrimSuffix(field, "]"), "[")
	name = "frontend." + strings.Replace(snakeCase(name), "cspreport", "csp_report", 1)
	if isMap {
		return name + "." + entry
	}
	return name
}

// fieldKeys maps fields of bff.Config to the keys that configure them, where
// serverKey cannot derive the key.
var fieldKeys = map[string]string{
	"PublicURL":                    "server.public_url",
	"Prefix":                       "server.prefix",
	"Page":                         "server.page_file",
	"Provider.ClientKeys":          "oidc.client_key",
	"Provider.ClientCertificate":   "oidc.client_cert_file",
	"Provider.AssertionAudience":   "oidc.client_assertion_audience",
	"Provider.Resources":           "oidc.resource",
	"Provider.Parameters":          "oidc.authorization_parameters",
	"PromptAfterEnd":               "oidc.prompt_after_end",
	"Provider.IDTokenAlg":          "oidc.id_token_alg",
	"Sessions.Wait":                "oidc.wait",
	"Sessions.AccessTokenLifetime": "oidc.access_token_lifetime",
	"Claims.Allow":                 "session.claims.allow",
	"Claims.Map":                   "session.claims.map",
	"Sessions.Keys":                "session.keys",
	"Sessions.IdleTimeout":         "session.idle_timeout",
	"Sessions.MaxLifetime":         "session.max_lifetime",
	"Sessions.RefreshAhead":        "session.refresh_ahead",
	"Sessions.CacheMaxAge":         "session.cache_max_age",
	"Sessions.MaxPerUser":          "session.max_per_user",
	"Routes":                       "routes",
	"LogRequests":                  "log.access",
	"LogExclude":                   "log.exclude",
	"LogUsers":                     "log.users",
	"FrontendServer.URL":           "frontend.url",
}

// serverKey returns the key that configures a field of bff.Config, such as
// routes[0].max_body for Routes[0].MaxBody. An unknown field is its own key.
func serverKey(field string) string {
	name, index, indexed := strings.Cut(field, "[")
	if indexed {
		index = "[" + index
	}
	key, ok := fieldKeys[name]
	if !ok {
		if provider, isProvider := strings.CutPrefix(name, "Provider."); isProvider {
			key, ok = "oidc."+snakeCase(provider), true
		} else if strings.HasPrefix(name, "Limits.") {
			key, ok = "server."+snakeCase(name), true
		}
	}
	if !ok {
		return field
	}
	return key + strings.Replace(snakeCase(index), "].tls", "].upstream_tls.cert_file", 1)
}

// snakeCase writes a name in Go as a key: "[0].MaxBody" as "[0].max_body".
func snakeCase(name string) string {
	var key strings.Builder
	for i, c := range name {
		if i > 0 && unicode.IsUpper(c) && unicode.IsLower(rune(name[i-1])) {
			key.WriteByte('_')
		}
		key.WriteRune(unicode.ToLower(c))
	}
	return key.String()
}

// variable returns the environment variable that sets a key.
func variable(key string) string {
	return "CLOAKROOM_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}
