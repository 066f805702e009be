package brokertest

import (
	"html"
	"net/url"
	"regexp"
)

var (
	hiddenInput = regexp.MustCompile(`<input[^>]*type="hidden"[^>]*>`)
	attribute   = regexp.MustCompile(`(name|value)="([^"]*)"`)
)

// HiddenFields returns the hidden fields of the forms on an HTML page.
func HiddenFields(page string) url.Values {
	form := make(url.Values)
	for _, input := range hiddenInput.FindAllString(page, -1) {
		var name, value string
		for _, m := range attribute.FindAllStringSubmatch(input, -1) {
			if m[1] == "name" {
				name = m[2]
			} else {
				value = html.UnescapeString(m[2])
			}
		}
		form.Add(name, value)
	}
	return form
}
