package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/expiry"
)

// cause is why a connection failed, as far as an operator can act on it.
type cause int

const (
	causeOther cause = iota
	causeRefused
	causeUnknownHost
	causeTimeout
	causeNotTLS            // the peer speaks another protocol
	causeUnknownCA         // that signed the peer's certificate
	causeExpired           // or not valid yet
	causeName              // the peer's certificate is for other names
	causeClientCertificate // the peer does not accept ours, or misses it
	causeTLSVersion        // the peer has only versions of TLS before 1.2
	causeClosed            // without a response
)

// causeOf returns why a connection failed.
func causeOf(err error) cause {
	if err == nil {
		return causeOther
	}
	var dns *net.DNSError
	var timeout net.Error
	var op *net.OpError
	var invalid x509.CertificateInvalidError
	switch {
	case as[x509.UnknownAuthorityError](err):
		return causeUnknownCA
	case as[x509.HostnameError](err):
		return causeName
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return causeExpired
	case as[tls.RecordHeaderError](err), errors.Is(err, http.ErrSchemeMismatch):
		return causeNotTLS
	case errors.As(err, &dns):
		return causeUnknownHost
	case errors.Is(err, syscall.ECONNREFUSED):
		return causeRefused
	case strings.Contains(err.Error(), "protocol version"): // by crypto/tls or in a TLS alert, without a type
		return causeTLSVersion
	case errors.As(err, &op) && op.Op == "remote error": // a TLS alert
		return causeClientCertificate
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return causeTimeout
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return causeClosed
	}
	return causeOther
}

func as[T error](err error) bool {
	_, ok := errors.AsType[T](err)
	return ok
}

// names returns the names of the certificate that a HostnameError is about.
func names(err error) string {
	e, ok := errors.AsType[x509.HostnameError](err)
	if !ok || e.Certificate == nil {
		return "none"
	}
	all := e.Certificate.DNSNames
	for _, ip := range e.Certificate.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) > 5 {
		all = append(all[:5:5], "…")
	}
	return cmp.Or(strings.Join(all, ", "), e.Certificate.Subject.String())
}

// speaksTLS reports whether a TLS server listens at an address.
func speaksTLS(ctx context.Context, network, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // nothing is sent
	conn, err := dialer.DialContext(ctx, network, addr)
	if err == nil {
		conn.Close()
		return true
	}
	cause := causeOf(err)
	return cause == causeClientCertificate || cause == causeTLSVersion
}

// expires returns the finding for a certificate that is not valid, or not for
// long. whose is as in "The certificate of …".
func expires(key, whose string, leaf *x509.Certificate, fix string) []Finding {
	end := leaf.NotAfter.UTC().Format(time.RFC3339)
	switch now := time.Now(); {
	case now.After(leaf.NotAfter):
		return []Finding{failure(key, fmt.Sprintf("The certificate of %s expired at %s.", whose, end), fix)}
	case now.Before(leaf.NotBefore):
		return []Finding{failure(key, fmt.Sprintf("The certificate of %s is not valid before %s.", whose,
			leaf.NotBefore.UTC().Format(time.RFC3339)), fix+" Check the clock of this machine too.")}
	case now.After(expiry.Near(leaf)):
		return []Finding{warning(key, fmt.Sprintf("The certificate of %s expires at %s.", whose, end), fix)}
	}
	return nil
}
