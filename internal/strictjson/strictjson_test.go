package strictjson_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/strictjson"
)

func TestParse(t *testing.T) {
	t.Parallel()
	nested := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	many := func(n int) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf(`"m%d":0`, i))
		}
		return "{" + strings.Join(all, ",") + "}"
	}
	for _, test := range []struct {
		text string
		good bool
	}{
		{`{}`, true},
		{" \t\r\n{ } ", true},
		{`{"a":1,"b":[{"a":1}],"c":{"a":"}"}}`, true},
		{`{"a":1,"A":2}`, true},
		{`{"":1}`, true},
		{`{"\ud83d\ude00":1}`, true},
		{`{"\\ud800":1}`, true},
		{nested(60), true},
		{many(1000), true},
		{``, false},
		{` `, false},
		{`null`, false},
		{`[]`, false},
		{`"a"`, false},
		{`7`, false},
		{`{`, false},
		{`{"a":1`, false},
		{`{"a":1}{}`, false},
		{`{"a":1} x`, false},
		{`{a:1}`, false},
		{`{"a":NaN}`, false},
		{`{"a":01}`, false},
		{"{\"a\":\"\xff\"}", false},
		{"{\"\xff\":1}", false},
		{"\ufeff{}", false},
		{`{"\ud800":1}`, false},
		{nested(70), false},
		{`{"a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, false},
		{many(1001), false},
	} {
		if _, err := strictjson.Parse([]byte(test.text)); (err == nil) != test.good {
			t.Errorf("%.60s: got %v, want it accepted: %v", test.text, err, test.good)
		}
	}
}

func TestObjectDecodesMembersOnDemand(t *testing.T) {
	t.Parallel()
	o, err := strictjson.Parse([]byte(`{
		"text": "a\u0062", "null": null, "number": 12345678901234567890.5, "yes": true, "list": ["a", "b"], "mixed": ["a", 7],
		"object": {"x": "y"}, "date": 17.9, "twice": 1, "twice": 2, "half": "\ud800x", "low": "\udc00", "pair": "\ud83d\ude00",
		"late": 1e300, "negative": -1, "empty": "", "none": [], "within": [{"x": {"y": 1, "y": 2}}]
	}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		got  func(name string) (any, error)
		want any // nil: an error
	}{
		"text text":        {func(n string) (any, error) { return o.Text(n) }, "ab"},
		"pair text":        {func(n string) (any, error) { return o.Text(n) }, "😀"},
		"empty text":       {func(n string) (any, error) { return o.Text(n) }, ""},
		"null text":        {func(n string) (any, error) { return o.Text(n) }, ""},
		"missing text":     {func(n string) (any, error) { return o.Text(n) }, ""},
		"TEXT text":        {func(n string) (any, error) { return o.Text(n) }, ""},
		"number text":      {func(n string) (any, error) { return o.Text(n) }, nil},
		"half text":        {func(n string) (any, error) { return o.Text(n) }, nil},
		"low text":         {func(n string) (any, error) { return o.Text(n) }, nil},
		"twice text":       {func(n string) (any, error) { return o.Text(n) }, nil},
		"list texts":       {func(n string) (any, error) { return o.Texts(n) }, []string{"a", "b"}},
		"text texts":       {func(n string) (any, error) { return o.Texts(n) }, []string{"ab"}},
		"none texts":       {func(n string) (any, error) { return o.Texts(n) }, []string{}},
		"null texts":       {func(n string) (any, error) { return o.Texts(n) }, []string(nil)},
		"mixed texts":      {func(n string) (any, error) { return o.Texts(n) }, nil},
		"object texts":     {func(n string) (any, error) { return o.Texts(n) }, nil},
		"yes bool":         {func(n string) (any, error) { return o.Bool(n) }, true},
		"null bool":        {func(n string) (any, error) { return o.Bool(n) }, false},
		"text bool":        {func(n string) (any, error) { return o.Bool(n) }, nil},
		"number value":     {func(n string) (any, error) { return o.Value(n) }, json.Number("12345678901234567890.5")},
		"within value":     {func(n string) (any, error) { return o.Value(n) }, nil},
		"list value":       {func(n string) (any, error) { return o.Value(n) }, []any{"a", "b"}},
		"object value":     {func(n string) (any, error) { return o.Value(n) }, map[string]any{"x": "y"}},
		"twice value":      {func(n string) (any, error) { return o.Value(n) }, nil},
		"negative date":    {func(n string) (any, error) { v, err := o.Date(n); return v.Unix(), err }, nil},
		"late date":        {func(n string) (any, error) { v, err := o.Date(n); return v.Unix(), err }, nil},
		"text date":        {func(n string) (any, error) { v, err := o.Date(n); return v.Unix(), err }, nil},
		"date date":        {func(n string) (any, error) { v, err := o.Date(n); return v.Unix(), err }, int64(17)},
		"object of object": {func(string) (any, error) { v, err := o.Object("object"); return len(v), err }, 1},
		"list of object":   {func(string) (any, error) { v, err := o.Object("list"); return len(v), err }, nil},
	} {
		member, _, _ := strings.Cut(name, " ")
		got, err := test.got(member)
		if (err != nil) != (test.want == nil) || err == nil && !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, test.want)
		}
	}
	all := o.Map()
	if _, ok := all["twice"]; ok || len(all) != 15 ||
		all["text"] != "ab" || all["number"] != json.Number("12345678901234567890.5") {
		t.Errorf("got %d members: %v", len(all), all)
	}
}

func TestNamesAreUnique(t *testing.T) {
	t.Parallel()
	for text, good := range map[string]bool{
		`{"sub":1,"iss":2}`:                      true,
		`{"x":1,"X":2}`:                          true,
		`{"SUB":1}`:                              true,
		`{"sub":1,"sub":2}`:                      false,
		`{"sub":1,"s\u0075b":2}`:                 false,
		`{"x":1,"x":2}`:                          false,
		`{"sub":1,"SUB":2}`:                      false,
		`{"SUB":1,"sub":2}`:                      false,
		`{"sub":1,"ſub":2}`:                      false,
		`{"x":{"sub":1},"y":{"sub":2}}`:          true,
		`{"kid":1,"\u212aid":2,"sub":1}`:         true, // the Kelvin sign, but nothing depends on kid here
		`{"iss":1,"iſs":2,"iSS":3}`:              false,
		`{"sub ":1,"sub":2}`:                     true,
		`{"sub":1,"x":2,"y":3,"z":4,"\u0000":5}`: true,
	} {
		o, err := strictjson.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(o.Unique(), o.Unambiguous("sub", "iss")); (err == nil) != good {
			t.Errorf("%s: got %v, want it accepted: %v", text, err, good)
		}
		err = strictjson.Members([]byte(text), []string{"sub", "iss"}, func(_, _ []byte) error { return nil })
		if (err == nil) != good {
			t.Errorf("Members of %s: got %v, want it accepted: %v", text, err, good)
		}
	}
}

// FuzzParse compares what is read with what encoding/json reads into a map,
// which does not fold names either.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"a":1}`, `{"a":"\ud800"}`, `{"a":[1,{"b":"}"}],"":{}}`, " {\n} ", `[]`, `{"a":1,"a":2}`, `{"\u0061":"\\"}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := strictjson.Parse([]byte(text))
		if err != nil {
			return
		}
		want := make(map[string]json.RawMessage)
		if err := json.Unmarshal([]byte(text), &want); err != nil || len(want) != len(o) {
			t.Fatalf("got %d members, encoding/json has %d, %v", len(o), len(want), err)
		}
		for name, value := range want {
			if !o.Has(name) {
				t.Fatalf("there is no %q", name)
			}
			if raw, err := o.Raw(name); err == nil && raw != nil && string(raw) != string(value) {
				t.Fatalf("%q is %s, want %s", name, raw, value)
			}
			o.Text(name)
			o.Texts(name)
			o.Date(name)
			o.Object(name)
			o.Value(name)
		}
	})
}
