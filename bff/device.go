package bff

import "strings"

// maxUserAgent is how much of a User-Agent is parsed, in bytes. Those of
// browsers have about 120.
const maxUserAgent = 512

// product is the name of a browser or a system, and what shows it in a
// User-Agent.
type product struct{ mark, name string }

// browsers are in this order because most of them also name those after them.
var browsers = []product{
	{"Edg/", "Edge"}, {"EdgA/", "Edge"}, {"EdgiOS/", "Edge"}, {"OPR/", "Opera"}, {"OPT/", "Opera"},
	{"Vivaldi/", "Vivaldi"}, {"SamsungBrowser/", "Samsung Internet"}, {"DuckDuckGo/", "DuckDuckGo"},
	{"Ddg/", "DuckDuckGo"}, {"YaBrowser/", "Yandex"}, {"FxiOS/", "Firefox"}, {"Firefox/", "Firefox"},
	{"HeadlessChrome/", "Chrome"}, {"CriOS/", "Chrome"}, {"Chrome/", "Chrome"}, {"Chromium/", "Chromium"},
	{"Safari/", "Safari"},
}

var systems = []product{
	{"Windows", "Windows"}, {"iPhone", "iPhone"}, {"iPad", "iPad"}, {"Android", "Android"}, {"CrOS", "ChromeOS"},
	{"Macintosh", "macOS"}, {"Linux", "Linux"},
}

// deviceName returns a short name for a user's list of sessions, such as
// "Firefox on Linux". It consists of the names above only, whatever the
// User-Agent is. It is empty if none of them fits.
func deviceName(userAgent string) string {
	userAgent = userAgent[:min(len(userAgent), maxUserAgent)]
	browser, system := nameIn(userAgent, browsers), nameIn(userAgent, systems)
	switch {
	case browser == "":
		return system
	case system == "":
		return browser
	}
	return browser + " on " + system
}

// nameIn returns the name of the first product that a User-Agent shows.
func nameIn(userAgent string, products []product) string {
	for _, p := range products {
		if strings.Contains(userAgent, p.mark) {
			return p.name
		}
	}
	return ""
}
