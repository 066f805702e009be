package http1

import (
	"bytes"
	"fmt"
	"net/http"
)

// Fields are the header fields of a request, in the form in which HTTP/1.1
// sends them (RFC 9112, section 5). The zero value has none.
type Fields struct {
	text []byte
	err  error // about the first field that is not valid
}

// Add adds a field for each value. Fields with one that is not valid, such as
// one that a reader could take for two, are never sent.
func (f *Fields) Add(name string, values ...string) {
	for _, v := range values {
		if err := checkField(name, v); err != nil {
			if f.err == nil {
				f.err = err
			}
			return
		}
		f.text = append(f.text, name...)
		f.text = append(f.text, ": "...)
		f.text = append(f.text, v...)
		f.text = append(f.text, "\r\n"...)
	}
}

// AddHeader adds the fields of a header.
func (f *Fields) AddHeader(h http.Header) {
	for name, values := range h {
		f.Add(name, values...)
	}
}

// AddFields adds other fields.
func (f *Fields) AddFields(other *Fields) {
	if f.err == nil {
		f.err = other.err
	}
	f.text = append(f.text, other.text...)
}

// Len returns the length of the fields in bytes.
func (f *Fields) Len() int { return len(f.text) }

// Truncate removes what was added since the length was n.
func (f *Fields) Truncate(n int) { f.text = f.text[:n] }

// Reset removes all fields, and keeps the memory.
func (f *Fields) Reset() { f.text, f.err = f.text[:0], nil }

// Header returns a copy of the fields as net/http has them. The error is that
// of a field that is not valid.
func (f *Fields) Header() (http.Header, error) {
	if f.err != nil {
		return nil, f.err
	}
	return parseFields(string(f.text))
}

// expectsContinue reports whether the server is asked for its consent before
// the body is sent (RFC 9110, section 10.1.1).
func (f *Fields) expectsContinue() bool {
	for line := range bytes.Lines(f.text) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if equalFold(name, "expect") && equalFold(bytes.TrimSpace(value), "100-continue") {
			return true
		}
	}
	return false
}

func checkField(name, value string) error {
	if !isToken(name) {
		return fmt.Errorf("invalid header name %.40q", name)
	}
	if !isFieldValue(value) {
		return fmt.Errorf("the header %s contains a control character", name)
	}
	return nil
}
