package check

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

const publicURLKey = "server.public_url"

// checkPublicURL requests the session endpoint at the public URL, as a browser
// without cookies does.
func checkPublicURL(ctx context.Context, cfg *config.Config) []Finding {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	u, err := url.Parse(cfg.Server.PublicURL)
	if err != nil || u.Host == "" {
		return nil // a mistake in the file, which was found
	}
	running := runs(ctx, cfg)
	resp, body, err := getSession(ctx, cfg, new(tls.Config))
	var findings []Finding
	if causeOf(err) == causeUnknownCA {
		findings = publicFailure(cfg, u, err, running)
		// Browsers may trust it. The request has no secret.
		resp, body, err = getSession(ctx, cfg, &tls.Config{InsecureSkipVerify: true})
	}
	if err != nil {
		return append(findings, publicFailure(cfg, u, err, running)...)
	}
	if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
		findings = append(findings, expires(publicURLKey, u.Host, resp.TLS.PeerCertificates[0],
			"Renew the certificate of the proxy in front.")...)
	}
	return append(findings, publicResponse(cfg, resp, body, running)...)
}

// getSession requests the session endpoint. It follows no redirect.
func getSession(ctx context.Context, cfg *config.Config, secure *tls.Config) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.Endpoint("/session"), nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("X-CSRF", "1")
	req.Header.Set("Accept", "application/json")
	client := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true,
			TLSClientConfig: secure},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return resp, body, err
}

// runs reports whether a broker with this configuration runs here.
func runs(ctx context.Context, cfg *config.Config) bool {
	host, port, err := net.SplitHostPort(cfg.Server.AdminListen)
	if err != nil {
		return false
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/healthz", nil)
	if err != nil {
		return false
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// publicFailure returns what it means that the public URL does not respond.
// Without a running broker, a local one is not expected to.
func publicFailure(cfg *config.Config, u *url.URL, err error, running bool) []Finding {
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err
	}
	problem := sentence("No response from " + cfg.Endpoint("/session") + ": " + err.Error())
	switch causeOf(err) {
	case causeUnknownCA:
		return []Finding{warning(publicURLKey, problem,
			"Make sure that browsers trust the CA of this certificate. This machine does not.")}
	case causeName:
		return []Finding{failure(publicURLKey, problem, "Use a certificate for "+u.Hostname()+
			", or set server.public_url to the host in the certificate: "+names(err)+".")}
	case causeExpired:
		return []Finding{failure(publicURLKey, problem, "Renew the certificate. Check the clock of this machine too.")}
	case causeNotTLS:
		return []Finding{failure(publicURLKey, problem,
			"Nothing there speaks TLS: terminate it in the proxy in front, "+
				"or set server.tls.")}
	}
	ip := net.ParseIP(u.Hostname())
	isLocal := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	switch {
	case running:
		return []Finding{failure(publicURLKey, problem+" The broker runs.",
			"Correct server.public_url, or let the proxy in front lead to "+cfg.Server.Listen+" (server.listen).")}
	case isLocal && causeOf(err) == causeRefused:
		return nil
	}
	return []Finding{warning(publicURLKey, problem+" No broker runs on this machine.",
		"Start it and check again. If it runs elsewhere, correct server.public_url, DNS or the proxy in front.")}
}

// publicResponse returns what a response at the public URL means.
func publicResponse(cfg *config.Config, resp *http.Response, body []byte, running bool) []Finding {
	from := cfg.Endpoint("/session")
	fail := func(problem, fix string) []Finding { return []Finding{failure(publicURLKey, problem, fix)} }
	var result struct {
		Code          string `json:"code"`
		Authenticated *bool  `json:"authenticated"`
	}
	_ = json.Unmarshal(body, &result) // anything but an object has no members
	switch {
	case resp.StatusCode == http.StatusOK && result.Authenticated != nil:
		return nil
	case result.Code == "wrong_host":
		return fail(from+" reaches a Cloakroom, which gets another Host header: 421 wrong_host.",
			"Let the proxy in front pass the Host (nginx: proxy_set_header Host $host). If it sends X-Forwarded-Host, "+
				"list it in server.trusted_proxies. Or correct server.public_url.")
	case result.Code == "csrf":
		return fail(from+" reaches a Cloakroom without the header X-CSRF: 403 csrf.",
			"Let the proxy in front pass the headers X-CSRF and Sec-Fetch-Site.")
	case result.Code == "store_unavailable":
		return nil // checkStore finds why
	case resp.StatusCode/100 == 3:
		return redirected(cfg, resp)
	case resp.StatusCode >= 502 && resp.StatusCode <= 504:
		problem := fmt.Sprintf("The proxy at %s does not reach the broker: %d.", from, resp.StatusCode)
		fix := "Let it lead to server.listen (" + cfg.Server.Listen + ")."
		if !running {
			return []Finding{warning(publicURLKey, problem+" No broker runs on this machine.", fix)}
		}
		return fail(problem, fix)
	}
	return fail(fmt.Sprintf("%s does not reach a Cloakroom: %d, %s.", from, resp.StatusCode,
		contentType(resp)), "Let the proxy in front pass everything below "+cfg.Endpoint("/")+
		" to "+cfg.Server.Listen+" (server.listen), or correct server.public_url.")
}

// redirected returns what a redirect means: browsers use another URL.
func redirected(cfg *config.Config, resp *http.Response) []Finding {
	to, err := resp.Location()
	if err != nil {
		to = new(url.URL)
	}
	location := to.Scheme + "://" + to.Host + to.Path
	problem := fmt.Sprintf("%s redirects to %s (%d). Endpoints must not be redirected.", cfg.Endpoint("/session"),
		location, resp.StatusCode)
	if public, ok := strings.CutSuffix(location, cfg.Server.Prefix+"/session"); ok &&
		location != cfg.Endpoint("/session") {
		return []Finding{failure(publicURLKey, problem, "If browsers use this URL, set server.public_url to "+public+
			", and register the redirect URI again.")}
	}
	return []Finding{failure(publicURLKey, problem, "Let the proxy in front pass everything below "+
		cfg.Endpoint("/")+" without a sign-in of its own, or correct server.public_url.")}
}

func contentType(resp *http.Response) string {
	if t := resp.Header.Get("Content-Type"); t != "" {
		return fmt.Sprintf("%.60s", t)
	}
	return "without a Content-Type"
}
