package http1

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

func hasBody(req *http.Request) bool {
	return req.Body != nil && req.Body != http.NoBody
}

// CheckRequest returns the error that wraps ErrInvalidRequest if RoundTrip
// would return one. It is for requests that another client sends.
func CheckRequest(req *http.Request, fields *Fields) error {
	err := checkTarget(req, targetPath(req))
	if err == nil {
		err = fields.err
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	}
	return nil
}

// targetPath returns the path that is sent. URL.Opaque is one that net/url
// would change.
func targetPath(req *http.Request) string { return cmp.Or(req.URL.Opaque, req.URL.EscapedPath()) }

// checkTarget checks the method, the target and the host of a request.
func checkTarget(req *http.Request, path string) error {
	if !isToken(req.Method) || !isFieldValue(req.Host) {
		return errors.New("invalid method or host")
	}
	for _, part := range [...]string{path, req.URL.RawQuery} {
		for i := range len(part) {
			if c := part[i]; c <= ' ' || c == 0x7f {
				return errors.New("the target contains a space or a control character")
			}
		}
	}
	return nil
}

// appendHead appends the head of a request.
func appendHead(b []byte, req *http.Request, fields *Fields) ([]byte, error) {
	path := targetPath(req)
	if err := checkTarget(req, path); err != nil {
		return nil, err
	}
	if fields.err != nil {
		return nil, fields.err
	}
	b = append(b, req.Method...)
	b = append(b, ' ')
	b = append(b, path...)
	if req.URL.RawQuery != "" || req.URL.ForceQuery {
		b = append(b, '?')
		b = append(b, req.URL.RawQuery...)
	}
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, req.Host...)
	b = append(b, "\r\n"...)
	b = append(b, fields.text...)
	switch {
	case !hasBody(req):
		if req.Method == http.MethodPost || req.Method == http.MethodPut || req.Method == http.MethodPatch {
			b = append(b, "Content-Length: 0\r\n"...)
		}
	case req.ContentLength >= 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, req.ContentLength, 10)
		b = append(b, "\r\n"...)
	default:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	return append(b, "\r\n"...), nil
}
