package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/brokertest"
	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/testenv"
)

// newPair returns a certificate for localhost and its key, in PEM.
func newPair(t *testing.T, serial int64, notAfter time.Time) (cert, key string) {
	t.Helper()
	return newPairFor(t, "localhost", serial, notAfter)
}

// newPairFor is newPair for a name or an address.
func newPairFor(t *testing.T, name string, serial int64, notAfter time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
	}
	if begin := notAfter.AddDate(0, 0, -90); begin.Before(template.NotBefore) {
		template.NotBefore = begin
	}
	if ip := net.ParseIP(name); ip != nil {
		template.DNSNames, template.IPAddresses = nil, []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return encodePEM("CERTIFICATE", der), encodePEM("PRIVATE KEY", keyDER)
}

func encodePEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func overwrite(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// served returns the serial number of the certificate that a listener serves.
func served(t *testing.T, addr string) int64 {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func TestARenewedCertificateIsServed(t *testing.T) {
	testenv.Slow(t)
	t.Parallel()
	listen, origin := freeOrigin(t)
	soon, year := time.Now().Add(48*time.Hour), time.Now().AddDate(1, 0, 0)
	cert, key := newPair(t, 1, soon)
	dir := t.TempDir()
	mount := filepath.Join(dir, "mount") // a symbolic link to a directory, as in Kubernetes
	put := func(name, cert, key string) {
		version := filepath.Join(dir, name)
		if err := os.Mkdir(version, 0o700); err != nil {
			t.Fatal(err)
		}
		overwrite(t, filepath.Join(version, "tls.crt"), cert)
		overwrite(t, filepath.Join(version, "tls.key"), key)
		if err := os.Symlink(version, mount+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(mount+".new", mount); err != nil {
			t.Fatal(err)
		}
	}
	put("v1", cert, key)
	certFile, keyFile := filepath.Join(mount, "tls.crt"), filepath.Join(mount, "tls.key")
	p := start(t, map[string]string{
		"SERVER_LISTEN": listen, "SERVER_ADMIN_LISTEN": "127.0.0.1:0",
		"SERVER_PUBLIC_URL":    strings.Replace(origin, "http:", "https:", 1),
		"SERVER_TLS_CERT_FILE": certFile, "SERVER_TLS_KEY_FILE": keyFile,
		"OIDC_ISSUER": "https://127.0.0.1:1", "OIDC_CLIENT_ID": "spa", "OIDC_CLIENT_SECRET": "s",
	}, "serve")
	p.waitFor(p.stderr, `"msg":"listening"`)
	p.waitFor(p.stderr, `"level":"WARN","msg":"certificate expires soon"`)
	if got := served(t, listen); got != 1 {
		t.Fatalf("certificate served: got %d, want 1", got)
	}
	becomes := func(want int64) {
		t.Helper()
		eventually(t, time.Minute, "the new certificate is served", func() bool {
			return served(t, listen) == want
		})
	}

	cert2, key2 := newPair(t, 2, year)
	put("v2", cert2, key2)
	becomes(2)

	// The files are written one after the other. In between they do not match.
	cert3, key3 := newPair(t, 3, year)
	overwrite(t, certFile, cert3)
	p.waitFor(p.stderr,
		`"level":"ERROR","msg":"certificate not replaced; the previous one stays in use","err":"server.tls`)
	if got := served(t, listen); got != 2 {
		t.Errorf("certificate served with half of a new pair: got %d, want 2", got)
	}
	overwrite(t, keyFile, key3)
	becomes(3)

	for name, text := range map[string]string{"invalid file": "junk", "empty file": ""} {
		overwrite(t, certFile, text)
		time.Sleep(certificateCheck + 500*time.Millisecond)
		if got := served(t, listen); got != 3 {
			t.Errorf("certificate served with an %s: got %d, want 3", name, got)
		}
	}
	os.Remove(certFile)
	time.Sleep(certificateCheck + 500*time.Millisecond)
	if got := served(t, listen); got != 3 {
		t.Errorf("certificate served without a file: got %d, want 3", got)
	}
	cert4, key4 := newPair(t, 4, time.Now().Add(-time.Minute))
	put("v4", cert4, key4)
	becomes(4)
	p.waitFor(p.stderr, `"level":"ERROR","msg":"certificate expired; browsers refuse it"`)
	if strings.Contains(p.stderr.String(), "PRIVATE KEY") {
		t.Error("the log contains a private key")
	}
}

func TestCertificateErrorsAreReportedWithAllOthers(t *testing.T) {
	cert, key := newPair(t, 1, time.Now().Add(time.Hour))
	_, otherKey := newPair(t, 2, time.Now().Add(time.Hour))
	good, matching := writeFile(t, "a.crt", cert), writeFile(t, "a.key", key)
	other, junk := writeFile(t, "b.key", otherKey), writeFile(t, "junk", "junk")
	for name, test := range map[string]struct{ cert, key, want string }{
		"neither": {"/nowhere/tls.crt", "/nowhere/tls.key", "server.tls.cert_file: open /nowhere/tls.crt: " +
			"no such file or directory\nserver.tls.key_file: open /nowhere/tls.key"},
		"no certificate": {"/nowhere/tls.crt", matching, "server.tls.cert_file: open /nowhere/tls.crt"},
		"no key":         {good, "/nowhere/tls.key", "server.tls.key_file: open /nowhere/tls.key"},
		"junk":           {junk, matching, "server.tls: "},
		"another key":    {good, other, "server.tls: "},
		"only one":       {good, "", "server.tls: set both cert_file and key_file, or neither"},
	} {
		cfg := &config.Config{
			Server:  config.Server{TLS: config.TLS{CertFile: test.cert, KeyFile: test.key}},
			Session: config.Session{MaxPerUser: -1},
		}
		cfg.SetDefaults()
		_, err := newBroker(cfg, extras{}, slog.New(slog.DiscardHandler))
		if err == nil {
			t.Errorf("%s: got no error", name)
			continue
		}
		for _, want := range []string{test.want, "session.max_per_user"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q in it", name, err, want)
			}
		}
	}
}

// TLS is turned on or off by a restart only.
func TestReloadServesTheCertificateOfOtherFiles(t *testing.T) {
	t.Parallel()
	testenv.Slow(t)
	year := time.Now().AddDate(1, 0, 0)
	dir := t.TempDir()
	pair := func(serial int64) (certFile, keyFile string) {
		cert, key := newPair(t, serial, year)
		certFile = filepath.Join(dir, fmt.Sprint(serial, ".crt"))
		keyFile = filepath.Join(dir, fmt.Sprint(serial, ".key"))
		overwrite(t, certFile, cert)
		overwrite(t, keyFile, key)
		return certFile, keyFile
	}
	listen, origin := freeOrigin(t)
	provider := brokertest.NewProvider(t, strings.Replace(origin, "http:", "https:", 1))
	file := filepath.Join(dir, "cloakroom.yaml")
	configure := func(tls string) {
		overwrite(t, file, fmt.Sprintf("server: {listen: %q, admin_listen: '127.0.0.1:0', public_url: %q, %s}\n"+
			"oidc: {issuer: %q, client_id: spa, client_secret: s}\n",
			listen, strings.Replace(origin, "http:", "https:", 1), tls, provider.Issuer))
	}
	use := func(certFile, keyFile string) {
		configure(fmt.Sprintf("tls: {cert_file: %q, key_file: %q}", certFile, keyFile))
	}
	first, firstKey := pair(1)
	use(first, firstKey)
	p := start(t, nil, "serve", "--config", file)
	p.waitFor(p.stderr, `"msg":"listening"`)
	if got := served(t, listen); got != 1 {
		t.Fatalf("certificate served: got %d, want 1", got)
	}
	second, secondKey := pair(2)
	use(second, secondKey)
	eventually(t, time.Minute, "the certificate of the other files is served", func() bool {
		return served(t, listen) == 2
	})
	cert, key := newPair(t, 3, year)
	overwrite(t, first, cert) // these files are not used any more
	overwrite(t, second, cert)
	overwrite(t, secondKey, key)
	eventually(t, time.Minute, "changes of the other files are served", func() bool {
		return served(t, listen) == 3
	})
	use(second, firstKey)
	p.waitFor(p.stderr, `"mistakes":\["server.tls: [^"]*are not a certificate and its key`)
	configure("prefix: /bff")
	p.waitFor(p.stderr, `"mistakes":\["server.tls: a change needs a restart"`)
	if got := served(t, listen); got != 3 {
		t.Errorf("certificate served after mistakes: got %d, want 3", got)
	}
}

// Some certificates live for days or hours, and are replaced all the time.
func TestShortLivedCertificateIsReportedLate(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c := &certificate{log: slog.New(slog.NewTextHandler(&log, nil))}
	now := time.Now()
	c.current.Store(&tls.Certificate{Leaf: &x509.Certificate{NotBefore: now, NotAfter: now.Add(6 * time.Hour)}})
	c.remind(now.Add(4 * time.Hour))
	if log.Len() > 0 {
		t.Errorf("with 2 of 6 hours left: got %s, want no line", &log)
	}
	c.remind(now.Add(5*time.Hour + time.Minute))
	if !strings.Contains(log.String(), "certificate expires soon") {
		t.Errorf("with 59 minutes left: got %q, want a warning", &log)
	}
}
