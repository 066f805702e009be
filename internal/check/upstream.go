package check

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// checkUpstreams connects to each upstream, and to the server of the app.
func checkUpstreams(ctx context.Context, cfg *config.Config) []Finding {
	type target struct {
		url string
		tls config.UpstreamTLS
	}
	seen := make(map[target]bool)
	var steps []func() []Finding
	for i, r := range cfg.Routes {
		for _, raw := range r.Upstream {
			if t := (target{raw, r.UpstreamTLS}); !seen[t] {
				seen[t] = true
				key := fmt.Sprintf("routes[%d].upstream", i)
				steps = append(steps, func() []Finding { return checkUpstream(ctx, key, raw, r.UpstreamTLS) })
			}
		}
	}
	steps = append(steps, func() []Finding {
		return checkUpstream(ctx, frontendURLKey, cfg.Frontend.URL, config.UpstreamTLS{})
	})
	return sideBySide(steps)
}

const frontendURLKey = "frontend.url"

// checkUpstream connects to one URL of a key. An empty URL is not set.
func checkUpstream(ctx context.Context, key, raw string, files config.UpstreamTLS) []Finding {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	u, err := url.Parse(raw)
	if err != nil {
		return nil // a mistake in the file, which was found
	}
	network, addr := "tcp", net.JoinHostPort(u.Hostname(), port(u))
	switch u.Scheme {
	case "unix":
		network, addr = "unix", u.Path
	case "http", "https", "h2c":
	default:
		return nil
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return []Finding{failure(key, sentence(raw+" is unreachable: "+err.Error()), upstreamFix(err, key))}
	}
	defer conn.Close()
	if u.Scheme != "https" {
		if network == "tcp" && !speaksHTTP(conn, u.Host) && speaksTLS(ctx, network, addr) {
			return []Finding{failure(key, raw+" speaks TLS, and the scheme is "+u.Scheme+".",
				fmt.Sprintf("Write https://%s in %s.", strings.TrimPrefix(raw, u.Scheme+"://"), key))}
		}
		return nil
	}
	return checkUpstreamTLS(ctx, conn, u, key, files)
}

// speaksHTTP reports whether a server responds to a request without TLS. TLS
// servers respond to it with 400, if at all.
func speaksHTTP(conn net.Conn, host string) bool {
	status, err := askNothing(conn, host)
	return err == nil && status != http.StatusBadRequest
}

// askNothing sends a request that asks for nothing (RFC 9110, section 9.3.7),
// and returns the status of the response.
func askNothing(conn net.Conn, host string) (status int, err error) {
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = fmt.Fprintf(conn, "OPTIONS * HTTP/1.1\r\nHost: %s\r\nUser-Agent: cloakroom check\r\n"+
		"Connection: close\r\n\r\n", host)
	if err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

func upstreamFix(err error, key string) string {
	switch causeOf(err) {
	case causeRefused:
		return "Start the upstream, or correct host and port in " + key + "."
	case causeUnknownHost:
		return "Correct the host in " + key + ", or its DNS entry."
	}
	return "Correct " + key + ", or make the upstream reachable from this machine (DNS, firewall)."
}

// checkUpstreamTLS makes a TLS handshake.
func checkUpstreamTLS(
	ctx context.Context, conn net.Conn, u *url.URL, key string, files config.UpstreamTLS,
) []Finding {
	secure, err := files.Config()
	if err != nil {
		return nil // a mistake in the file, which was found
	}
	secure.ServerName = u.Hostname()
	client := tls.Client(conn, secure)
	err = client.HandshakeContext(ctx)
	if err == nil {
		// With TLS 1.3 a server refuses the client certificate only after the
		// handshake.
		if _, refused := askNothing(client, u.Host); causeOf(refused) == causeClientCertificate {
			err = refused
		}
	}
	if err == nil {
		if leaf := client.ConnectionState().PeerCertificates[0]; leaf != nil {
			return expires(key, u.Host, leaf, "Renew the certificate of the upstream.")
		}
		return nil
	}
	problem := sentence(u.String() + ": TLS handshake failed: " + err.Error())
	fail := func(key, fix string) []Finding { return []Finding{failure(key, problem, fix)} }
	switch causeOf(err) {
	case causeNotTLS, causeClosed:
		return fail(key, fmt.Sprintf("The upstream does not speak TLS at this port: write http://%s in %s, or "+
			"correct the port.", u.Host+u.Path, key))
	case causeUnknownCA:
		if key == frontendURLKey {
			return fail(key, "Use a certificate that this machine trusts.")
		}
		return fail(key+"_tls.ca_file", unknownCAFix(key+"_tls.ca_file", files.CAFile, "the upstream's"))
	case causeName:
		return fail(key, "Write a name in the certificate as the host in "+key+": "+names(err)+".")
	case causeExpired:
		return fail(key, "Renew the certificate of the upstream. Check the clock of this machine too.")
	case causeTLSVersion:
		return fail(key, "Enable TLS 1.2 or a newer version at the upstream.")
	case causeClientCertificate:
		return fail(key+"_tls.cert_file", "The upstream requires a client certificate, or another one: set "+
			key+"_tls.cert_file and key_file.")
	}
	return fail(key, upstreamFix(errors.Unwrap(err), key))
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}
