package http1

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
)

const (
	// maxPlainHead is the maximum size of a plain request's head, and
	// maxPlainBody that of its body.
	maxPlainHead   = 8 << 10
	maxPlainBody   = 256 << 10
	maxPlainFields = 100
)

// parsePlain parses the head of a plain request into req, whose other members
// it keeps. It returns the length of the head, 0 if b does not contain all of
// it, or -1 if the request is not plain.
//
// A plain request is one that all servers read alike (RFC 9112, sections 2.2, 3
// and 5): GET /path HTTP/1.1 with one Host, and with a Content-Length or
// without a body. It neither switches to another protocol nor expects a
// response before its body. req becomes what net/http makes of it.
func parsePlain(req *http.Request, b []byte) int {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		lines := bytes.Count(b, []byte("\r\n"))
		if len(b) >= maxPlainHead || len(b) > 0 && !tokenByte[b[0]] || bytes.Count(b, []byte("\n")) > lines {
			return -1
		}
		return 0
	}
	if end > maxPlainHead {
		return -1
	}
	head := string(b[:end+2]) // the request is made of parts of it
	line, fields, _ := strings.Cut(head, "\r\n")
	if !parseRequestLine(req, line) || !parsePlainFields(req, fields) {
		return -1
	}
	return end + 4
}

// parseRequestLine parses a request line whose target is a path.
func parseRequestLine(req *http.Request, line string) bool {
	method, rest, ok := strings.Cut(line, " ")
	target, isHTTP11 := strings.CutSuffix(rest, " HTTP/1.1")
	if !ok || !isHTTP11 || !isToken(method) || !strings.HasPrefix(target, "/") || method == http.MethodConnect {
		return false
	}
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c >= 0x7f {
			return false
		}
	}
	var err error
	req.URL, err = url.ParseRequestURI(target)
	req.Method, req.RequestURI = method, target
	req.Proto, req.ProtoMajor, req.ProtoMinor = "HTTP/1.1", 1, 1
	return err == nil
}

// parsePlainFields parses header fields, each of which ends with CRLF.
func parsePlainFields(req *http.Request, text string) bool {
	n := strings.Count(text, "\n")
	if n > maxPlainFields {
		return false
	}
	fields := make([]string, 0, 2*n)
	for text != "" {
		line, rest, _ := strings.Cut(text, "\n")
		text = rest
		line, hasCR := strings.CutSuffix(line, "\r")
		name, value, ok := cutField(line)
		if !hasCR || !ok || !isFieldValue(value) {
			return false
		}
		switch name {
		case "Transfer-Encoding", "Trailer", "Expect", "Upgrade", "Http2-Settings":
			return false
		case "Host":
			if req.Host != "" || !isPlainHost(value) {
				return false
			}
			req.Host = value
		default:
			fields = append(fields, name, value)
		}
	}
	req.Header = newHeader(fields)
	return req.Host != "" && parseFraming(req)
}

// parseFraming reads the fields of the framing.
func parseFraming(req *http.Request) bool {
	h := req.Header
	switch connection := h["Connection"]; {
	case len(connection) == 0 || len(connection) == 1 && strings.EqualFold(connection[0], "keep-alive"):
	case len(connection) == 1 && strings.EqualFold(connection[0], "close"):
		req.Close = true
	default:
		return false
	}
	if lengths := h["Content-Length"]; len(lengths) > 0 {
		length, ok := digits([]byte(lengths[0]), 10)
		if !ok || len(lengths) > 1 || length > maxPlainBody {
			return false
		}
		req.ContentLength = length
	}
	if pragma := h["Pragma"]; len(pragma) > 0 && pragma[0] == "no-cache" && h["Cache-Control"] == nil {
		h["Cache-Control"] = []string{"no-cache"} // as net/http does
	}
	return true
}

// isPlainHost reports whether a Host contains only what names, addresses and
// ports contain.
func isPlainHost(host string) bool {
	for i := range len(host) {
		switch c := host[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case c == '.', c == '-', c == '_', c == ':', c == '[', c == ']':
		default:
			return false
		}
	}
	return host != ""
}
