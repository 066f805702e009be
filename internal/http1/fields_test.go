package http1

import (
	"bytes"
	"maps"
	"slices"
	"testing"
)

func TestFields(t *testing.T) {
	t.Parallel()
	var base, f Fields
	base.Add("Via", "1.1 a", "1.1 b")
	f.Add("Accept", "*/*")
	f.Add("Empty")
	f.AddFields(&base)
	length := f.Len()
	f.Add("Authorization", "Bearer t: 1")
	const want = "Accept: */*\r\nVia: 1.1 a\r\nVia: 1.1 b\r\n"
	if got := string(f.text); got != want+"Authorization: Bearer t: 1\r\n" {
		t.Errorf("got %q", got)
	}
	h, err := f.Header()
	if err != nil || !maps.EqualFunc(h, map[string][]string{
		"Accept": {"*/*"}, "Via": {"1.1 a", "1.1 b"}, "Authorization": {"Bearer t: 1"},
	}, slices.Equal) {
		t.Errorf("got %q, %v", h, err)
	}
	f.Truncate(length)
	if got := string(f.text); got != want {
		t.Errorf("truncated: got %q", got)
	}
}

func TestFieldsThatAreNotValidAreNotSent(t *testing.T) {
	t.Parallel()
	var invalid, f Fields
	invalid.Add("A", "b\r\nC: d")
	f.AddFields(&invalid)
	f.Add("E", "f")
	if h, err := f.Header(); err == nil {
		t.Errorf("got %q, want an error", h)
	}
	if f.Truncate(0); CheckRequest(request(t, "GET", ""), &f) == nil {
		t.Error("valid, although a field was left out")
	}
	if f.Reset(); CheckRequest(request(t, "GET", ""), &f) != nil {
		t.Error("not valid after Reset")
	}
}

// Each byte at each position, among bytes that could carry into or hide it.
func TestFieldValueHasNoControlCharacters(t *testing.T) {
	t.Parallel()
	for _, around := range []byte{'a', ' ', '\t', '!', 0x7e, 0x80, 0xff} {
		for length := range 20 {
			for at := range length {
				value := bytes.Repeat([]byte{around}, length)
				for c := range 256 {
					value[at] = byte(c)
					want := c >= ' ' && c != 0x7f || c == '\t'
					if isFieldValue(value) != want || isFieldValue(string(value)) != want {
						t.Fatalf("%q: got %v, want %v", value, !want, want)
					}
				}
			}
		}
	}
}

func TestTrimSpace(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"": "", " \t": "", "a": "a", " a": "a", "a ": "a", "\ta": "a", "a\t": "a",
		" \t a b\t \t": "a b", "\na\n": "\na\n",
	} {
		if got := trimSpace(value); got != want {
			t.Errorf("%q: got %q, want %q", value, got, want)
		}
	}
}
