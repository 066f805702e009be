package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/session"
)

// ownSettings are the keys that Settings omits: replicas may differ in them, or
// are compared by the value itself.
var ownSettings = []string{
	// Replicas may differ in these, and in paths of files.
	"server.listen", "server.admin_listen", "frontend.dir", "frontend.url", "log.level",
	// Replicas that find each other share the store. Only their way to it can
	// differ.
	"store",
	// These are compared by themselves.
	"oidc.issuer", "oidc.client_id", "server.public_url", "session.keys",
}

// Settings returns the values that all replicas of an app should have in
// common, by key. Values are in a form of their own and may contain secrets.
// Keys that are not set are missing, so that a key which another release does
// not know yet makes no difference. A list such as routes is one value.
func (c *Config) Settings() map[string]session.Secret {
	settings := make(map[string]session.Secret)
	addSettings(settings, reflect.ValueOf(*c), "")
	return settings
}

// App returns the app of the configuration, as its server has it. A public URL
// with a mistake is taken as it is.
func (c *Config) App() session.App {
	origin, err := bff.PublicOrigin(c.Server.PublicURL)
	if err != nil {
		origin = c.Server.PublicURL
	}
	return session.App{Issuer: c.OIDC.Issuer, ClientID: c.OIDC.ClientID, Origin: origin}
}

// addSettings adds the fields of a section.
func addSettings(settings map[string]session.Secret, section reflect.Value, key string) {
	for name, f := range setFields(section) {
		name = join(key, name)
		switch {
		case slices.Contains(ownSettings, name):
		case f.Kind() == reflect.Struct:
			addSettings(settings, f, name)
		default:
			settings[name] = session.Secret(settingText(f))
		}
	}
}

// setFields returns the fields of a struct that are set, by their keys, without
// paths of files. The value of a secret is in its own field, also if it was
// read from a file.
func setFields(v reflect.Value) map[string]reflect.Value {
	set := make(map[string]reflect.Value)
	for name, f := range fieldsOf(v) {
		if !f.IsZero() && !strings.HasSuffix(name, "_file") {
			set[name] = f
		}
	}
	return set
}

// settingText returns a text that is the same for equal values only. It
// contains secrets.
func settingText(v reflect.Value) string {
	var parts []string
	switch v.Kind() {
	case reflect.String:
		return strconv.Quote(v.String())
	case reflect.Pointer:
		return settingText(v.Elem())
	case reflect.Slice:
		for i := range v.Len() {
			parts = append(parts, settingText(v.Index(i)))
		}
	case reflect.Map:
		for entries := v.MapRange(); entries.Next(); {
			parts = append(parts, settingText(entries.Key())+":"+settingText(entries.Value()))
		}
		slices.Sort(parts)
	case reflect.Struct:
		set := setFields(v)
		for _, name := range slices.Sorted(maps.Keys(set)) {
			parts = append(parts, name+":"+settingText(set[name]))
		}
	default:
		return fmt.Sprint(v.Interface())
	}
	return "[" + strings.Join(parts, " ") + "]"
}
