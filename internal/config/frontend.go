package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/web"
)

// frontend returns the handler of the app's files. It returns nil without an
// app, but checks the settings anyway.
func (c *Config) frontend(app fs.FS, log *slog.Logger) (*web.Handler, error) {
	cfg := c.webConfig()
	cfg.FS, cfg.Logger = app, log
	if cfg.Dir == "" && cfg.URL == "" && app == nil {
		cfg.FS = web.Demo()
		_, err := web.New(cfg)
		return nil, err
	}
	return web.New(cfg)
}

// webConfig translates frontend.
func (c *Config) webConfig() web.Config {
	f := c.Frontend
	csp := make(map[string][]string)
	for _, raw := range []string{c.OIDC.Issuer, c.OIDC.LogoutURL} {
		if u, err := url.Parse(raw); err == nil && u.Host != "" {
			origin := u.Scheme + "://" + u.Host
			csp["form-action"] = append(csp["form-action"], origin) // the target of a logout form
			csp["frame-src"] = append(csp["frame-src"], origin)     // the target of a silent login
		}
	}
	for directive, sources := range f.CSP {
		csp[directive] = append(csp[directive], sources...)
	}
	cfg := web.Config{
		Dir:               f.Dir,
		URL:               f.URL,
		Fallback:          web.Fallback(f.Fallback),
		ErrorPage:         bff.ErrorPage,
		CSP:               csp,
		CSPReportOnly:     f.CSPReportOnly,
		PermissionsPolicy: f.PermissionsPolicy,
		ReferrerPolicy:    f.ReferrerPolicy,
		OpenerPolicy:      f.OpenerPolicy,
		SourceMaps:        f.SourceMaps,
	}
	if isHTTPS(c.Server.PublicURL) {
		cfg.HSTS = f.HSTS.header()
	}
	return cfg
}

// header returns the value of Strict-Transport-Security, or "".
func (h HSTS) header() string {
	age := time.Duration(h.MaxAge)
	switch h.MaxAge {
	case noHSTS:
		return ""
	case forgetHSTS:
		age = 0
	case 0:
		age = 365 * 24 * time.Hour
	}
	value := "max-age=" + strconv.FormatInt(int64(age/time.Second), 10)
	if h.IncludeSubdomains == nil || *h.IncludeSubdomains {
		value += "; includeSubDomains"
	}
	return value
}

// maxPublicSettings is the maximum size of frontend.config as JSON.
const maxPublicSettings = 64 << 10

// publicSettings returns frontend.config as JSON; nil if there are none.
func (c *Config) publicSettings(problems *Errors) json.RawMessage {
	if len(c.Frontend.Config) == 0 {
		return nil
	}
	text, err := json.Marshal(c.Frontend.Config)
	switch {
	case err != nil:
		problems.add("frontend.config", "%w", err)
	case len(text) > maxPublicSettings:
		problems.add("frontend.config", "has %d bytes as JSON; the maximum is %d", len(text), maxPublicSettings)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Frontend.Config)) {
		if secret := c.secretIn(c.Frontend.Config[name]); secret != "" {
			problems.addWithFix("frontend.config."+name, "remove it",
				"[redacted] contains the value of %s, and every client can read it", secret)
		}
	}
	return text
}

// secretIn returns the key of the secret that a public setting contains, or "".
func (c *Config) secretIn(value any) string {
	text := fmt.Sprint(value)
	secrets := map[string]string{
		"oidc.client_secret": c.OIDC.ClientSecret.Reveal(), "server.admin_token": c.Server.AdminToken.Reveal(),
	}
	for i, key := range c.Session.Keys {
		secrets[fmt.Sprintf("session.keys[%d]", i)] = key.Reveal()
	}
	for _, key := range slices.Sorted(maps.Keys(secrets)) {
		if len(secrets[key]) >= 8 && strings.Contains(text, secrets[key]) {
			return key
		}
	}
	return ""
}

// secretName matches names of settings that are usually secret, and secretValue
// texts that usually are.
var (
	secretName  = regexp.MustCompile(`(?i)secret|token|passw|private_?key|credential`)
	secretValue = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY|^eyJ[\w-]+\.[\w-]+\.[\w-]*$|://[^/@:]+:[^/@]+@`)
)

// warnOfSecrets adds a warning for each public setting that looks secret.
func warnOfSecrets(key string, value reflect.Value, all *Errors) {
	for value.Kind() == reflect.Interface {
		value = value.Elem()
	}
	switch value.Kind() {
	case reflect.Map:
		for _, name := range slices.SortedFunc(slices.Values(value.MapKeys()),
			func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) }) {
			at := join(key, name.String())
			if secretName.MatchString(name.String()) {
				all.addWithFix(at, "remove it, or rename it if it is public",
					"the name looks like that of a secret, and every client can read frontend.config")
				continue
			}
			warnOfSecrets(at, value.MapIndex(name), all)
		}
	case reflect.Slice:
		for i := range value.Len() {
			warnOfSecrets(fmt.Sprintf("%s[%d]", key, i), value.Index(i), all)
		}
	case reflect.String:
		if secretValue.MatchString(value.String()) {
			all.addWithFix(key, "remove it",
				"[redacted] looks like a secret, and every client can read frontend.config")
		}
	}
}

// maxPlainNodes and maxPlainDepth bound a value of frontend.config, whose
// aliases could repeat it without end.
const (
	maxPlainNodes = 10_000
	maxPlainDepth = 32
)

// plainValue returns a YAML node as a value that has the same form in JSON.
func plainValue(n *yaml.Node) (any, error) {
	nodes := 0
	var read func(n *yaml.Node, depth int) (any, error)
	read = func(n *yaml.Node, depth int) (any, error) {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if nodes++; nodes > maxPlainNodes || depth > maxPlainDepth {
			return nil, fmt.Errorf("has more than %d values or %d levels", maxPlainNodes, maxPlainDepth)
		}
		switch n.Kind {
		case yaml.SequenceNode:
			list := make([]any, 0, len(n.Content))
			for _, item := range n.Content {
				value, err := read(item, depth+1)
				if err != nil {
					return nil, err
				}
				list = append(list, value)
			}
			return list, nil
		case yaml.MappingNode:
			fields := make(map[string]any)
			for i := 0; i+1 < len(n.Content); i += 2 {
				name := n.Content[i]
				if name.Tag == "!!merge" {
					return nil, errors.New("merge keys (<<) are not supported below frontend.config")
				}
				if _, repeated := fields[name.Value]; repeated || name.Kind != yaml.ScalarNode {
					return nil, fmt.Errorf("%q occurs twice, or is not a single value", name.Value)
				}
				value, err := read(n.Content[i+1], depth+1)
				if err != nil {
					return nil, err
				}
				fields[name.Value] = value
			}
			return fields, nil
		}
		return plainScalar(n)
	}
	return read(n, 0)
}

// plainScalar returns a scalar as null, a boolean, a number or a string.
func plainScalar(n *yaml.Node) (any, error) {
	switch n.Tag {
	case "!!null":
		return nil, nil
	case "!!bool":
		b, err := strconv.ParseBool(strings.ToLower(n.Value))
		if err != nil {
			return nil, fmt.Errorf("%q is neither true nor false", n.Value)
		}
		return b, nil
	case "!!int", "!!float":
		var number any
		if err := n.Decode(&number); err != nil {
			return nil, fmt.Errorf("%q is not a number", n.Value)
		}
		if f, isFloat := number.(float64); isFloat && (math.IsNaN(f) || math.IsInf(f, 0)) {
			return nil, fmt.Errorf("%q is not a number in JSON", n.Value)
		}
		return number, nil
	}
	return n.Value, nil
}
