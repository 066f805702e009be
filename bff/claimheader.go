package bff

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// setClaims sets the headers that tell the upstream of the route the user's
// claims. A claim that another server could read as another one is left out,
// with a warning.
func (a *access) setClaims(out http.Header) {
	route, current := a.route, a.session
	set := func(name, claim, text, problem string) {
		switch {
		case len(text) > maxClaimHeader:
			problem = "it is too long for a header"
		case !isFieldValue(text) || text != strings.TrimSpace(text):
			problem, text = "it has a control character, or a space at its beginning or end", ""
		}
		if problem != "" {
			a.app.log.Warn("claim not sent to the upstream", "header", name, "claim", claim,
				"problem", problem, "bytes", len(text), "session", current.ID)
		}
		if text != "" && len(text) <= maxClaimHeader {
			out[name] = []string{text}
		}
	}
	for name, claim := range route.Headers {
		value, problem := current.Claim(claim), ""
		texts := claimTexts(value)
		if _, isList := value.([]any); isList {
			n := len(texts)
			texts = slices.DeleteFunc(texts, func(text string) bool {
				return strings.Contains(text, ",") || text != strings.TrimSpace(text)
			})
			if len(texts) < n {
				problem = "elements with a comma, or a space at the beginning or end, are left out: " +
					"they would arrive as others (use headers_json)"
			}
		}
		set(name, claim, strings.Join(texts, ","), problem)
	}
	for name, claim := range route.HeadersJSON {
		if value := current.Claim(claim); value != nil {
			set(name, claim, asciiJSON(value), "")
		}
	}
}

// asciiJSON returns a claim as JSON in ASCII, which any header can have.
func asciiJSON(claim any) string {
	text, err := json.Marshal(claim) // of what was JSON: it does not fail
	if err != nil {
		return ""
	}
	var b strings.Builder
	for _, c := range string(text) {
		switch {
		case c > 0xffff:
			high, low := utf16.EncodeRune(c)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		case c >= utf8.RuneSelf || c == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

// maxClaimHeader bounds the length of a claim in a header, in bytes: servers
// accept 8 KiB for all headers.
const maxClaimHeader = 4 << 10

// claimTexts returns a claim as texts: one, or those of a list. An object, null
// and a missing claim have none.
func claimTexts(claim any) []string {
	switch v := claim.(type) {
	case string:
		return []string{v}
	case bool:
		return []string{strconv.FormatBool(v)}
	case json.Number:
		return []string{v.String()}
	case []any:
		var all []string
		for _, item := range v {
			if _, list := item.([]any); !list {
				all = append(all, claimTexts(item)...)
			}
		}
		return all
	}
	return nil
}
