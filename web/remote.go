package web

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/loopback"
)

// checkURL returns the URL of the server that has the app's files, and whether
// it is a development server: one on this machine, or with plain HTTP in a
// private network. Every other is a CDN, which needs https.
func checkURL(raw string) (u *url.URL, dev bool, err error) {
	u, err = url.Parse(raw)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, false, fmt.Errorf("%q is not a URL such as http://localhost:5173 or "+
			"https://cdn.example.com/app", raw)
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return nil, false, errors.New("it has more than scheme, host and path")
	}
	if err := checkBase(u); err != nil {
		return nil, false, err
	}
	host := strings.ToLower(u.Hostname())
	switch {
	case loopback.IsHost(host), u.Scheme == "http" && isPrivateHost(host):
		return u, true, nil
	case u.Scheme == "http":
		return nil, false, fmt.Errorf("%q: an attacker on the network could change the app; use https, or "+
			"a development server on this machine or in a private network", raw)
	}
	return u, false, nil
}

// encodedSeparator matches what some servers take for the end of a segment, or
// for a dot segment.
var encodedSeparator = regexp.MustCompile(`(?i)%(2e|2f|5c)`)

// checkBase checks the path and the port of a URL that paths are appended to.
func checkBase(u *url.URL) error {
	base := strings.TrimSuffix(u.Path, "/")
	switch port := u.Port(); {
	case base != "" && path.Clean(base) != base, encodedSeparator.MatchString(u.EscapedPath()):
		return fmt.Errorf("%q: the path has an empty segment, a dot segment, or an encoded slash or dot", u)
	case strings.HasSuffix(base, ".html"):
		return fmt.Errorf("%q names a page; name the directory of the app, without %q", u, path.Base(base))
	case port != "":
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("%q: %q is not a port", u, port)
		}
	}
	return nil
}

// setServer prepares for the server of cfg.URL.
func (h *Handler) setServer(cfg Config) error {
	base, dev, err := checkURL(cfg.URL)
	if err != nil {
		return configerr.New("URL", cfg.URL, err)
	}
	h.dev, h.files = dev, newCDN(base, cfg.Client, h.log)
	return nil
}

// isPrivateHost reports whether a host is in a private network: its address is
// private, or its name has no meaning on the internet (RFC 6761, RFC 6762).
func isPrivateHost(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsPrivate()
	}
	if !strings.Contains(host, ".") {
		return true // such as the name of a container
	}
	for _, suffix := range []string{".internal", ".local", ".test", ".home.arpa"} {
		if strings.HasSuffix(host, suffix) {
			return true
		}
	}
	return false
}

// IsDevServer reports whether Config.URL is that of a development server.
func (h *Handler) IsDevServer() bool { return h.dev }

// IsPage reports whether the Handler serves a request itself: a navigation
// inside the app, with the page of Config.URL, or a path that is never served,
// such as that of a dotfile. The server has everything else.
func (h *Handler) IsPage(r *http.Request) bool {
	name := strings.TrimPrefix(r.URL.Path, "/")
	return name == "" || name == index || navigates(r) && !isAsset(name) ||
		!h.public(strings.TrimSuffix(name, "/"))
}

// SetHeader sets in the header of a response of the server of Config.URL what
// the Handler's own responses have. The Content-Security-Policy of a CDN's
// response allows no inline script: only the page that the Handler serves
// itself has hashes.
//
// The policy of a development server's page is in its report-only form, because
// such servers insert scripts. It allows inline script elements, whose hashes a
// build would have.
func (h *Handler) SetHeader(header http.Header) {
	if !h.dev { // headers that the Handler may not have, because of its configuration
		for _, name := range []string{csp, cspReportOnly, "X-Frame-Options"} {
			header.Del(name)
		}
	}
	maps.Copy(header, h.headers)
	if !h.dev {
		header.Set(h.policyName, h.policy.forPage(nil))
		return
	}
	if strings.HasPrefix(header.Get("Content-Type"), "text/html") {
		header.Set(cspReportOnly, h.policy.forDevServer())
	}
}
