package proxy

import (
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// hasNoBody reports whether a response with a status has no content, whatever
// its header says (RFC 9110, sections 6.4.1 and 15.3.6).
func hasNoBody(status int) bool {
	return status == http.StatusNoContent || status == http.StatusResetContent || status == http.StatusNotModified
}

// sandbox keeps an upstream's document from running script as a page of this
// origin (CSP 3, section 6.3.2). Types that run none are left alone: viewers,
// such as that for PDF, do not work in a sandbox.
func sandbox(h http.Header, status int) {
	types := h["Content-Type"]
	switch {
	case status == http.StatusNotModified && (len(types) == 0 || len(types) == 1 && !runsScript(types[0])):
		// The headers that the browser has stored stay.
		h["Content-Type"] = nil
		delete(h, "Content-Security-Policy")
		delete(h, "X-Content-Type-Options")
		return
	case hasNoBody(status) && len(types) == 0, len(types) == 1 && !runsScript(types[0]):
		return
	}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	csp := h["Content-Security-Policy"]
	h["Content-Security-Policy"] = append(csp[:len(csp):len(csp)], "sandbox") // every policy is enforced
}

// runsScript reports whether a browser that opens a document of a media type
// could run script in it: HTML, XML, types with parts that are documents, and
// what it does not understand and might take for one of these.
func runsScript(contentType string) bool {
	name, parameters, _ := strings.Cut(contentType, ";")
	name = strings.ToLower(strings.Trim(name, " \t"))
	family, subtype, ok := strings.Cut(name, "/")
	switch {
	case !ok, !httpguts.ValidHeaderFieldName(family), !httpguts.ValidHeaderFieldName(subtype):
		return true
	case hasOpenComma(parameters): // of two types the last one counts (MIME Sniffing, section 4.4)
		return true
	case family == "*", family == "unknown", name == "application/unknown": // they are sniffed
		return true
	case family == "multipart", family == "message":
		return true
	case subtype == "xml", subtype == "xsl", subtype == "svg", strings.HasSuffix(subtype, "+xml"):
		return true
	}
	return name == "application/x-mimearchive" || strings.Contains(subtype, "html") ||
		strings.Contains(subtype, "xslt")
}

// hasOpenComma reports whether there is a comma outside of quotes, or after
// quotes that do not end.
func hasOpenComma(parameters string) bool {
	quoted, comma := false, false
	for i := 0; i < len(parameters); i++ {
		switch c := parameters[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == ',' && !quoted:
			return true
		case c == ',':
			comma = true
		}
	}
	return quoted && comma
}
