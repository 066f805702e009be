package check

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// checkCertificates checks the broker's own certificates: that of its listener,
// and those by which it authenticates to others.
func checkCertificates(cfg *config.Config) []Finding {
	findings := checkListenerCertificate(cfg)
	files := map[string]string{
		"oidc.client_cert_file": cfg.OIDC.ClientCertFile,
		"store.cert_file":       cfg.Store.CertFile,
	}
	for i, r := range cfg.Routes {
		files[fmt.Sprintf("routes[%d].upstream_tls.cert_file", i)] = r.UpstreamTLS.CertFile
	}
	for key, file := range files {
		if file == "" {
			continue
		}
		if leaf, err := readLeaf(file); err == nil { // else a mistake in the file, which was found
			findings = append(findings, expires(key, file, leaf, "Renew it.")...)
		}
	}
	return findings
}

// checkListenerCertificate checks server.tls.
func checkListenerCertificate(cfg *config.Config) []Finding {
	const key = "server.tls.cert_file"
	files := cfg.Server.TLS
	if files.CertFile == "" || files.KeyFile == "" {
		return nil
	}
	var findings []Finding
	for name, file := range map[string]string{key: files.CertFile, "server.tls.key_file": files.KeyFile} {
		if _, err := os.ReadFile(file); err != nil {
			findings = append(findings, failure(name, sentence(err.Error()),
				"Correct the path, or give the user that runs the broker the right to read the file."))
		}
	}
	if len(findings) > 0 {
		return findings
	}
	pair, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
	if err != nil {
		return []Finding{failure("server.tls", sentence(fmt.Sprintf("%s and %s are not a certificate and its key: %v",
			files.CertFile, files.KeyFile, err)), "Set server.tls.key_file to the private key of the certificate.")}
	}
	findings = expires(key, "the listener ("+files.CertFile+")", pair.Leaf,
		"Renew it. Cloakroom uses it without a restart.")
	if u, err := url.Parse(cfg.Server.PublicURL); err == nil && u.Hostname() != "" {
		if err := pair.Leaf.VerifyHostname(u.Hostname()); err != nil {
			findings = append(findings, warning(key, sentence(fmt.Sprintf("The certificate in %s is not for %s, the "+
				"host of server.public_url: %v", files.CertFile, u.Hostname(), err)),
				"Use a certificate for this host. If a proxy in front has another one for browsers, that is fine."))
		}
	}
	return findings
}

// readLeaf reads the first certificate in a file.
func readLeaf(file string) (*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

// checkModes checks that files with secrets are not readable by all users of
// the machine.
func checkModes(o Options) []Finding {
	var findings []Finding
	for key, file := range config.NamedFiles(o.File, o.Getenv) {
		if strings.HasSuffix(key, "ca_file") || strings.HasSuffix(key, "cert_file") || key == "server.page_file" {
			continue // public
		}
		if readable(file) {
			findings = append(findings, warning(key,
				fmt.Sprintf("%s has a secret, and every user of this machine can read it.", file), modeFix(file)))
		}
	}
	if o.File != "" && readable(o.File) && config.HasSecrets(o.File) {
		findings = append(findings, warning("",
			fmt.Sprintf("%s contains secrets, and every user of this machine can read it.", o.File),
			modeFix(o.File)+" Or move the secrets to files of their own (_file)."))
	}
	return findings
}

func modeFix(file string) string {
	return "Run chmod 600 " + file + " (in Kubernetes: defaultMode 0400), owned by the user that runs the broker."
}

// readable reports whether all users can read a file.
func readable(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0
}
