package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cloakroom-bff/cloakroom/session"
)

// loader reads a configuration and collects its problems.
type loader struct {
	source   string // the file, or the environment variable that is being read
	getenv   func(string) string
	problems Errors
	files    map[string]string // :: key of a secret → its file

	partial    bool // of a file that is not YAML, the lines before the mistake are read
	unreadable bool // the file is missing or not YAML
}

// Load reads the file, unless its name is empty, then the environment, then the
// files with secrets, and sets the defaults. The error is an Errors. Besides
// the error, Load returns the keys that could be read, so that they can be
// checked too. It returns nil if the file is missing or not YAML.
func Load(file string, getenv func(string) string) (*Config, error) {
	l := newLoader(file, getenv)
	c := l.load()
	if l.unreadable {
		return nil, l.problems
	}
	return c, l.problems.orNil()
}

// LoadAdmin returns server.admin_listen and server.admin_token, by which a
// running broker can be reached. It ignores mistakes in the configuration. If
// the file is not YAML, it reads the lines before the mistake.
func LoadAdmin(file string, getenv func(string) string) (listen string, token session.Secret) {
	l := newLoader(file, getenv)
	l.partial = true
	server := l.load().Server
	return server.AdminListen, server.AdminToken
}

func newLoader(file string, getenv func(string) string) *loader {
	return &loader{source: file, getenv: getenv, files: make(map[string]string)}
}

// load reads all keys that can be read, and sets the defaults.
func (l *loader) load() *Config {
	c := new(Config)
	c.Server.ShutdownDelay = unset
	if l.source != "" {
		l.unreadable = !l.readFile(c)
	}
	eachVariable(reflect.ValueOf(c).Elem(), "", l.readVariable)
	eachVariable(reflect.ValueOf(c).Elem(), "", l.readSecretFile)
	if c.Server.ShutdownDelay == unset {
		c.Server.ShutdownDelay = 0
		if l.getenv("KUBERNETES_SERVICE_HOST") != "" {
			c.Server.ShutdownDelay = kubernetesDelay
		}
	}
	if c.Server.Listen == "" && l.getenv("container") != "" {
		c.Server.Listen = ":8080"
	}
	c.SetDefaults()
	c.files = l.allFiles(c)
	return c
}

// unset is the value of a Delay that is not configured.
const unset Delay = math.MinInt64

// kubernetesDelay is the default of server.shutdown_delay in a pod. Kubernetes
// removes a pod from its Services while it sends SIGTERM, not before.
const kubernetesDelay = Delay(5 * time.Second)

// fail adds a problem with a node of the YAML. value is the value as written,
// or "" if the problem is not the value.
func (l *loader) fail(n *yaml.Node, key, value, format string, args ...any) {
	source := fmt.Sprintf("%s:%d", l.source, n.Line)
	l.problems = append(l.problems, &Error{Source: source, Key: key, Value: value, Err: fmt.Errorf(format, args...)})
}

// readFile reports whether the file could be read and is YAML.
func (l *loader) readFile(c *Config) bool {
	unreadable := func(source string, err error) bool {
		l.problems = append(l.problems, &Error{Source: source, Err: err})
		return false
	}
	text, err := readSource(l.source)
	if err != nil {
		return unreadable("", fmt.Errorf("read configuration: %w", err))
	}
	doc, err := parseDocument(text)
	if failed, ok := errors.AsType[*yaml.LoadError](err); ok && l.partial {
		text = firstLines(text, failed.Mark.Line) // what follows does not matter
	}
	for parsed := 0; err != nil && l.partial && len(text) > 0; parsed += len(text) {
		text = shortened(text, err, parsed > maxPartial)
		doc, err = parseDocument(text)
	}
	if err != nil {
		return unreadable(l.source, withTabHint(err, text))
	}
	if len(doc.Content) > 0 { // else the file is empty
		l.decode(doc.Content[0], reflect.ValueOf(c).Elem(), "")
	}
	return true
}

// maxPartial is how many bytes of a file that is not YAML are parsed line by
// line. A long file must not keep a command busy for minutes.
const maxPartial = 4 << 20

// shortened returns the text without its last line. In a hurry, it returns the
// lines before that where the error has its cause, such as a quote that is not
// closed, or the first half.
func shortened(text []byte, err error, hurry bool) []byte {
	failed, ok := errors.AsType[*yaml.LoadError](err)
	keep := len(text) - 1
	switch {
	case hurry && ok && failed.ContextMark.Line > 1:
		return firstLines(text[:keep], failed.ContextMark.Line-1)
	case hurry:
		keep /= 2
	}
	return text[:bytes.LastIndexByte(text[:keep], '\n')+1]
}

// firstLines returns up to n lines of a text.
func firstLines(text []byte, n int) []byte {
	end := 0
	for ; n > 0 && end < len(text); n-- {
		next := bytes.IndexByte(text[end:], '\n') + 1
		if next == 0 {
			return text // its last line has no end
		}
		end += next
	}
	return text[:end]
}

// pipes has what was read from pipes, by their names. A pipe can be read once,
// and a start reads the configuration more than once.
var pipes sync.Map

// readSource returns the content of a file. A pipe, such as that of
// --config <(sops decrypt cloakroom.yaml), keeps its content.
func readSource(name string) ([]byte, error) {
	if text, ok := pipes.Load(name); ok {
		return text.([]byte), nil
	}
	info, statErr := os.Stat(name)
	text, err := os.ReadFile(name)
	if err == nil && statErr == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		pipes.Store(name, text)
	}
	return text, err
}

// ReadPipe reads a file if it is a pipe, which waits for its writer, and keeps
// the content. Load and the others do not wait then.
func ReadPipe(name string) {
	if info, err := os.Stat(name); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
		readSource(name) // an error is that of Load too
	}
}

// withTabHint adds to the error of a file that is not YAML which of its lines
// is indented with a tab.
func withTabHint(err error, text []byte) error {
	n := 0
	for line := range bytes.Lines(text) {
		n++
		if indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]; bytes.IndexByte(indent, '\t') >= 0 {
			return fmt.Errorf("%w; line %d is indented with a tab: use spaces", err, n)
		}
	}
	return err
}

// parseDocument parses the only document of a YAML file. It has no content if
// the file is empty.
func parseDocument(text []byte) (yaml.Node, error) {
	var doc, more yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&doc); err != nil && err != io.EOF {
		return yaml.Node{}, err
	}
	if err := d.Decode(&more); err != io.EOF {
		return yaml.Node{}, errors.New("contains more than one document")
	}
	return doc, nil
}

// decode decodes a YAML node into v. key is the path of the node.
func (l *loader) decode(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	fail := func(format string, args ...any) {
		value := describeNode(n, v)
		if n.Kind == yaml.ScalarNode && !isSecret(v) {
			value = n.Value
		}
		l.fail(n, key, value, format, args...)
	}
	switch {
	case v.Kind() == reflect.Pointer: // to a struct that may be left out
		v.Set(reflect.New(v.Type().Elem()))
		l.decode(n, v.Elem(), key)
	case v.Kind() == reflect.Interface:
		value, err := plainValue(n)
		if err != nil {
			fail("%w", err)
			return
		}
		v.Set(reflect.ValueOf(value))
	case n.Kind == yaml.ScalarNode && hasText(v):
		if err := setText(v, n.Value); err != nil {
			fail("%v", err)
		}
	case v.Kind() == reflect.Struct:
		if n.Kind != yaml.MappingNode {
			fail("%s is not a mapping of keys to values", describeNode(n, v))
			return
		}
		l.decodeStruct(n, v, key)
	case v.Kind() == reflect.Map && n.Kind == yaml.MappingNode:
		v.Set(reflect.MakeMap(v.Type()))
		for _, p := range l.pairs(n, key) {
			if p.name.Kind != yaml.ScalarNode {
				l.fail(p.name, key, "", "a name is not a single value")
				continue
			}
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
	default:
		fail("%s is not %s", describeNode(n, v), kindName(v))
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
		l.fail(name, at, "", "%w", &UnknownKeyError{suggest(name.Value, fieldNames(v))})
	}
}

// UnknownKeyError is the Err of an Error for a key that does not exist.
type UnknownKeyError struct {
	Near string // the key that it is close to, such as issuer; empty: none
}

func (e *UnknownKeyError) Error() string {
	if e.Near == "" {
		return "unknown key"
	}
	return "unknown key; did you mean " + e.Near + "?"
}

// ErrRepeated is the Err of an Error for a key that a mapping has twice.
var ErrRepeated = errors.New("occurs twice")

// pair is a key of a mapping and its value.
type pair struct{ name, value *yaml.Node }

// pairs returns the keys and values of a mapping, including those of its merge
// keys (<<). The mapping's own keys take precedence, then the first merged
// mapping. It reports a key that occurs twice in one mapping.
func (l *loader) pairs(n *yaml.Node, key string) []pair {
	var all []pair
	seen := make(map[string]bool)
	merged := make(map[*yaml.Node]bool)
	var add func(n *yaml.Node)
	add = func(n *yaml.Node) {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if merged[n] { // an anchor that is merged twice, or into itself
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
				l.fail(p.name, join(key, name), "", "%w", ErrRepeated)
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
				isAlias := item.Kind == yaml.AliasNode && item.Alias.Kind == yaml.MappingNode
				if item.Kind != yaml.MappingNode && !isAlias {
					l.fail(item, join(key, "<<"), "", "a merge key needs a mapping or a list of mappings")
					continue
				}
				add(item)
			}
		}
	}
	add(n)
	return all
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

// describeNode returns a node of the wrong kind as messages show it.
func describeNode(n *yaml.Node, v reflect.Value) string {
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
