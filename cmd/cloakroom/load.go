package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/cloakroom-bff/cloakroom/session"
)

// loader reads a configuration and collects what is wrong with it.
type loader struct {
	file     string
	getenv   func(string) string
	mistakes []string
	// unreadable says that the file could not be read, or is not YAML.
	unreadable bool
	files      map[string]string // :: key of a secret → the file that holds it
}

// loadConfig reads the file, unless its name is empty, then the environment, then the files that secrets are in. The error is a *configError; beside
// it is what could be read, for the mistakes that are in that, or nil where there is no telling.
func loadConfig(file string, getenv func(string) string) (*config, error) {
	l := &loader{file: file, getenv: getenv, files: make(map[string]string)}
	c := new(config)
	if file != "" {
		l.readFile(c)
	}
	l.readEnvironment(reflect.ValueOf(c).Elem(), "")
	l.readSecrets(reflect.ValueOf(c).Elem(), "")
	c.setDefaults()
	switch {
	case l.unreadable:
		return nil, &configError{l.mistakes}
	case len(l.mistakes) > 0:
		return c, &configError{l.mistakes}
	}
	return c, nil
}

func (l *loader) mistake(format string, args ...any) {
	l.mistakes = append(l.mistakes, fmt.Sprintf(format, args...))
}

func (l *loader) readFile(c *config) {
	text, err := os.ReadFile(l.file)
	if err != nil {
		l.unreadable = true
		l.mistake("%v", err)
		return
	}
	var doc, more yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&doc); err != nil && err != io.EOF {
		l.unreadable = true
		l.mistake("%s: %v", l.file, err)
		return
	}
	if err := d.Decode(&more); err != io.EOF {
		l.unreadable = true
		l.mistake("%s: it holds more than one document", l.file)
		return
	}
	if len(doc.Content) > 0 { // else the file is empty
		l.decode(doc.Content[0], reflect.ValueOf(c).Elem(), "")
	}
}

// decode puts a YAML node into v. key is the path that led here.
func (l *loader) decode(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	fail := func(format string, args ...any) {
		l.mistake("%s:%d: %s: %s", l.file, n.Line, cmp.Or(key, "the file"), fmt.Sprintf(format, args...))
	}
	switch {
	case v.Kind() == reflect.Pointer: // to a struct that may be left out
		v.Set(reflect.New(v.Type().Elem()))
		l.decode(n, v.Elem(), key)
	case v.Kind() == reflect.Struct:
		if n.Kind != yaml.MappingNode {
			fail("%s is not a mapping of keys to values", shown(n, v))
			return
		}
		l.decodeStruct(n, v, key)
	case v.Kind() == reflect.Map && n.Kind == yaml.MappingNode:
		v.Set(reflect.MakeMap(v.Type()))
		for _, p := range l.pairs(n, key) {
			name, item := p.name.Value, reflect.New(v.Type().Elem()).Elem()
			if item.Kind() == reflect.Slice && p.value.Kind == yaml.ScalarNode {
				item.Set(reflect.ValueOf([]string{p.value.Value})) // spaces and all
			} else {
				l.decode(p.value, item, join(key, name))
			}
			v.SetMapIndex(reflect.ValueOf(name), item)
		}
	case v.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, item := range n.Content {
			l.decode(item, v.Index(i), fmt.Sprintf("%s[%d]", key, i))
		}
	case n.Kind == yaml.ScalarNode && (!isComposite(v) || v.Kind() == reflect.Slice && !isStructSlice(v)):
		if err := setText(v, n.Value); err != nil {
			fail("%v", err)
		}
	default:
		fail("%s is not %s", shown(n, v), kindName(v))
	}
}

func (l *loader) decodeStruct(n *yaml.Node, v reflect.Value, key string) {
	for _, p := range l.pairs(n, key) {
		name, value := p.name, p.value
		at := join(key, name.Value)
		if f, ok := fieldNamed(v, name.Value); ok {
			l.decode(value, f, at)
			continue
		}
		if secret, ok := strings.CutSuffix(name.Value, "_file"); ok {
			if f, ok := fieldNamed(v, secret); ok && isSecret(f) {
				var path string
				if l.decode(value, reflect.ValueOf(&path).Elem(), at); path != "" {
					l.files[join(key, secret)] = path
				}
				continue
			}
		}
		if key == "" && strings.HasPrefix(name.Value, "x-") {
			continue // holds anchors
		}
		hint := ""
		if near := nearest(name.Value, fieldNames(v)); near != "" {
			hint = fmt.Sprintf("; did you mean %s?", near)
		}
		l.mistake("%s:%d: %s: unknown key%s", l.file, name.Line, at, hint)
	}
}

// pair is a key of a mapping and its value.
type pair struct{ name, value *yaml.Node }

// pairs returns what is in a mapping, with the mappings that merge keys (<<)
// name: what the mapping says itself wins, then what is named first. A key that
// a mapping has twice is a mistake.
func (l *loader) pairs(n *yaml.Node, key string) []pair {
	var all []pair
	seen := make(map[string]bool)
	merged := make(map[*yaml.Node]bool)
	var add func(n *yaml.Node)
	add = func(n *yaml.Node) {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if merged[n] { // an anchor that is named again, or that names itself
			return
		}
		merged[n] = true
		var merges []*yaml.Node
		own := make(map[string]bool)
		for i := 0; i+1 < len(n.Content); i += 2 {
			p := pair{n.Content[i], n.Content[i+1]}
			name := p.name.Value
			switch {
			case p.name.Tag == "!!merge":
				merges = append(merges, p.value)
			case own[name]:
				l.mistake("%s:%d: %s: is there twice", l.file, p.name.Line, join(key, name))
			case !seen[name]:
				all = append(all, p)
				fallthrough
			default:
				own[name], seen[name] = true, true
			}
		}
		for _, m := range merges {
			items := []*yaml.Node{m}
			if m.Kind == yaml.SequenceNode {
				items = m.Content
			}
			for _, item := range items {
				if item.Kind != yaml.MappingNode && (item.Kind != yaml.AliasNode || item.Alias.Kind != yaml.MappingNode) {
					l.mistake("%s:%d: %s: a merge key names mappings, or a list of them", l.file, item.Line, join(key, "<<"))
					continue
				}
				add(item)
			}
		}
	}
	add(n)
	return all
}

// readEnvironment overrides every key whose environment variable is set.
func (l *loader) readEnvironment(v reflect.Value, key string) {
	for i := range v.NumField() {
		f, at := v.Field(i), join(key, tag(v.Type().Field(i)))
		if f.Kind() == reflect.Struct {
			l.readEnvironment(f, at)
			continue
		}
		name := "CLOAKROOM_" + strings.ToUpper(strings.ReplaceAll(at, ".", "_"))
		if isSecret(f) {
			if path := l.getenv(name + "_FILE"); path != "" {
				if l.getenv(name) != "" {
					l.mistake("%s_FILE: set either %s or %s_FILE, not both", name, name, name)
				}
				l.files[at] = path
				f.SetZero()
			}
		}
		text := l.getenv(name)
		if text == "" {
			continue
		}
		delete(l.files, at)
		if isSecret(f) && cleanSecret(text) == "" {
			l.mistake("%s: holds white space only", name)
			continue
		}
		// Lists and mappings are YAML, in its flow style most likely. A list can also
		// be written with commas.
		list := f.Kind() == reflect.Slice && !isStructSlice(f)
		if isComposite(f) && !list || list && strings.HasPrefix(strings.TrimSpace(text), "[") {
			l.decodeText(name, text, f, at)
			continue
		}
		if err := setText(f, text); err != nil {
			l.mistake("%s: %v", name, err)
		}
	}
}

// decodeText puts the YAML in an environment variable into v.
func (l *loader) decodeText(name, text string, v reflect.Value, key string) {
	inEnvironment := *l
	inEnvironment.file, inEnvironment.mistakes = name, nil
	var doc yaml.Node
	switch err := yaml.Load([]byte(text), &doc); {
	case err != nil && isSecret(v):
		inEnvironment.mistake("%s: [redacted] is not YAML", name) // the error may quote it
	case err != nil:
		inEnvironment.mistake("%s: not YAML: %v", name, err)
	case len(doc.Content) > 0:
		inEnvironment.decode(doc.Content[0], v, key)
	}
	l.mistakes = append(l.mistakes, inEnvironment.mistakes...)
}

// strayVariables returns a warning for each environment variable that is no key,
// but close to one.
func strayVariables(environ []string) []string {
	var names []string
	collectVariables(reflect.TypeFor[config](), "CLOAKROOM", &names)
	var warnings []string
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "CLOAKROOM_") || slices.Contains(names, name) {
			continue
		}
		if near := nearest(name, names); near != "" {
			warnings = append(warnings, fmt.Sprintf("%s is not a key and has no effect; did you mean %s?", name, near))
		}
	}
	return warnings
}

// collectVariables collects the names of the environment variables that set the
// fields of a struct.
func collectVariables(t reflect.Type, prefix string, names *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name := prefix + "_" + strings.ToUpper(tag(f))
		if f.Type.Kind() == reflect.Struct {
			collectVariables(f.Type, name, names)
			continue
		}
		*names = append(*names, name)
		if isSecret(reflect.Zero(f.Type)) {
			*names = append(*names, name+"_FILE")
		}
	}
}

// readSecrets reads the files that secrets are in.
func (l *loader) readSecrets(v reflect.Value, key string) {
	for i := range v.NumField() {
		f, at := v.Field(i), join(key, tag(v.Type().Field(i)))
		if f.Kind() == reflect.Struct {
			l.readSecrets(f, at)
			continue
		}
		path, ok := l.files[at]
		if !ok {
			continue
		}
		if !f.IsZero() {
			l.mistake("%s: is there twice, as %s and as %s_file", at, at, at)
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			l.mistake("%s_file: %v", at, err)
			continue
		}
		if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
			l.mistake("%s_file: %s is not a text in UTF-8", at, path)
			continue
		}
		if cleanSecret(string(text)) == "" {
			l.mistake("%s_file: %s is empty", at, path)
			continue
		}
		setText(f, string(text)) // no text is wrong for a secret
	}
}

// setText reads text into a value that is not made of others. A list is written with commas, spaces or line ends between its items.
func setText(v reflect.Value, text string) error {
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = text
	case *session.Secret:
		*p = session.Secret(cleanSecret(text))
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 90s, 30m or 12h", text)
		}
		if d <= 0 {
			return fmt.Errorf("%q has to be more than nothing", text)
		}
		*p = d
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		*p = n
	case *bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		*p = b
	case *byteSize:
		n, err := parseSize(text)
		if err != nil {
			return err
		}
		*p = n
	case *eventRate:
		rate, err := parseRate(text)
		if err != nil {
			return err
		}
		*p = rate
	case *burstSize:
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is not a whole number of 1 or more", text)
		}
		*p = burstSize(n)
	case *byteRate:
		n, err := parseByteRate(text)
		if err != nil {
			return err
		}
		*p = n
	case *[]string:
		*p = splitList(text)
	case *[]session.Secret:
		*p = nil
		for _, item := range splitList(text) {
			*p = append(*p, session.Secret(item))
		}
	default:
		return errors.New("has to be written as YAML")
	}
	return nil
}

// cleanSecret returns a secret without what files and shells add to it: white
// space around it, and a byte order mark. So it is the same from wherever it is
// read.
func cleanSecret(text string) string {
	return strings.TrimSpace(strings.TrimPrefix(text, "\ufeff"))
}

// parseSize reads a number of bytes such as 4096, 64KiB, 10MB or 1GiB.
func parseSize(text string) (byteSize, error) {
	digits := strings.TrimRight(text, "kKMGiB ")
	unit, ok := map[string]byteSize{
		"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
	}[strings.TrimSpace(text[len(digits):])]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n <= 0 || n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("%q is not a size such as 64KiB, 10MB or 1GiB", text)
	}
	return byteSize(n) * unit, nil
}

// parseRate reads a rate such as 4/s, 30/m or 100/h.
func parseRate(text string) (eventRate, error) {
	number, unit, _ := strings.Cut(text, "/")
	seconds, ok := map[string]float64{"s": 1, "m": 60, "h": 3600}[strings.TrimSpace(unit)]
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !ok || !(n > 0 && n <= 1e9) {
		return 0, fmt.Errorf("%q is not a rate such as 4/s, 30/m or 100/h", text)
	}
	return eventRate(n / seconds), nil
}

// parseByteRate reads a number of bytes a second such as 240B/s or 1KiB/s; off and 0 are noRate.
func parseByteRate(text string) (byteRate, error) {
	size, ok := strings.CutSuffix(text, "/s")
	if size = strings.TrimSpace(size); text == "off" || size == "0" || ok && size == "0B" {
		return noRate, nil
	}
	n, err := parseSize(size)
	if err != nil || !ok || n > 1<<40 {
		return 0, fmt.Errorf("%q is not a rate such as 240B/s or 1KiB/s, or off", text)
	}
	return byteRate(n), nil
}

func (r byteRate) String() string {
	if r == noRate {
		return "off"
	}
	return strconv.FormatInt(int64(r), 10) + "B/s"
}

func splitList(text string) []string {
	return strings.FieldsFunc(text, func(c rune) bool { return c == ',' || c == ' ' || c == '\n' || c == '\r' || c == '\t' })
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

func tag(f reflect.StructField) string { return f.Tag.Get("yaml") }

func fieldNamed(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if tag(v.Type().Field(i)) == name {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func fieldNames(v reflect.Value) []string {
	var names []string
	for i := range v.NumField() {
		name := tag(v.Type().Field(i))
		names = append(names, name)
		if isSecret(v.Field(i)) {
			names = append(names, name+"_file")
		}
	}
	return names
}

func isSecret(v reflect.Value) bool {
	switch v.Interface().(type) {
	case session.Secret, []session.Secret:
		return true
	}
	return false
}

func isStructSlice(v reflect.Value) bool {
	return v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct
}

// isComposite reports whether a value is made of others.
func isComposite(v reflect.Value) bool {
	return v.Kind() == reflect.Slice || v.Kind() == reflect.Map || v.Kind() == reflect.Pointer || v.Kind() == reflect.Struct
}

func kindName(v reflect.Value) string {
	switch {
	case isStructSlice(v):
		return "a list of mappings"
	case v.Kind() == reflect.Map:
		return "a mapping of names to values"
	case v.Kind() == reflect.Slice:
		return "a list"
	default:
		return "a single value"
	}
}

// shown is what a message says of a node that is of the wrong kind.
func shown(n *yaml.Node, v reflect.Value) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isSecret(v):
		return "[redacted]"
	default:
		return strconv.Quote(n.Value)
	}
}

// nearest returns the one of names that a mistyped name is most likely meant to be, or "".
func nearest(name string, names []string) string {
	best, distance := "", 3 // more changes than two are another word
	for _, n := range names {
		if d := editDistance(name, n); d < distance {
			best, distance = n, d
		}
	}
	return best
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
