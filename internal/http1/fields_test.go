package http1

import (
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
