package check

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// checkStore connects to the store and reads its settings.
func checkStore(ctx context.Context, cfg *config.Config) []Finding {
	if dir, isFile := cfg.Store.FileDir(); isFile {
		return checkFileStore(dir)
	}
	store := openRedis(cfg)
	if store == nil {
		return nil
	}
	defer store.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*stepLimit)
	defer cancel()
	var findings []Finding
	for _, p := range store.Check(ctx) {
		findings = append(findings, storeFinding(ctx, cfg, p))
	}
	return findings
}

// openRedis returns the store if it is Redis; nil if it is not, or after a
// mistake in the file, which was found.
func openRedis(cfg *config.Config) *tokenstore.Redis {
	if !cfg.Store.IsShared() {
		return nil
	}
	opened, err := cfg.OpenStore(discard)
	if err != nil {
		return nil
	}
	store, ok := opened.(*tokenstore.Redis)
	if !ok {
		opened.Close()
		return nil
	}
	return store
}

// storeFinding returns the finding for a problem of Redis.
func storeFinding(ctx context.Context, cfg *config.Config, p tokenstore.Problem) Finding {
	const key = "store.url"
	if p.Err == nil {
		return warning(key, sentence(capital(p.Text)), sentence(capital(p.Advice)))
	}
	problem := sentence("Redis cannot be used: " + p.Text)
	scheme, secure, addr := redisAddress(cfg)
	switch c := causeOf(p.Err); {
	case redis.IsAuthError(p.Err) && cfg.Store.PasswordFile != "":
		return failure("store.password_file", problem, "Put the password of the user of store.url into the file.")
	case redis.IsAuthError(p.Err):
		return failure(key, problem, "Correct user and password in store.url, or set store.password_file.")
	case c == causeUnknownCA:
		return failure("store.ca_file", problem, unknownCAFix("store.ca_file", cfg.Store.CAFile, "Redis's"))
	case c == causeName:
		return failure(key, problem, "Set the host in store.url to a name in the certificate: "+names(p.Err)+".")
	case c == causeExpired:
		return failure(key, problem, "Renew the certificate of Redis. Check the clock of this machine too.")
	case c == causeNotTLS, secure && (c == causeTimeout || c == causeClosed) && speaksRedis(ctx, addr):
		return failure(key, "Redis does not speak TLS at this port. "+problem,
			fmt.Sprintf("Write %s: instead of %s: in store.url, or turn on TLS in Redis.",
				strings.Replace(scheme, "rediss", "redis", 1), scheme))
	case secure && (c == causeClientCertificate || c == causeClosed) && cfg.Store.CertFile == "":
		return failure("store.cert_file", problem, "Redis may require a client certificate (tls-auth-clients): "+
			"set store.cert_file and store.key_file.")
	case secure && c == causeClientCertificate:
		return failure("store.cert_file", problem, "Use a client certificate that a CA of Redis has signed.")
	case !secure && (c == causeClosed || c == causeOther || c == causeTimeout) && addr != "" &&
		speaksTLS(ctx, "tcp", addr):
		return failure(key, "Redis expects TLS at this port. "+problem,
			fmt.Sprintf("Write %s: instead of %s: in store.url.",
				strings.Replace(scheme, "redis", "rediss", 1), scheme))
	}
	return failure(key, problem, sentence(capital(cmp.Or(p.Advice, "check store.url and the log of Redis"))))
}

// redisAddress returns scheme and address of store.url. The address is empty
// unless it is that of one server.
func redisAddress(cfg *config.Config) (scheme string, secure bool, addr string) {
	raw := cfg.Store.URL.Reveal()
	scheme, _, _ = strings.Cut(raw, ":")
	if u, err := url.Parse(raw); err == nil && (scheme == "redis" || scheme == "rediss") {
		addr = u.Hostname() + ":" + cmp.Or(u.Port(), "6379")
	}
	return scheme, strings.HasPrefix(scheme, "rediss"), addr
}

// speaksRedis reports whether a Redis server without TLS listens at an address,
// which may be empty.
func speaksRedis(ctx context.Context, addr string) bool {
	if addr == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return false
	}
	first := make([]byte, 1)
	_, err = io.ReadFull(conn, first)
	return err == nil && (first[0] == '+' || first[0] == '-') // +PONG, or -NOAUTH
}

// checkFileStore checks the directory of a store in a file, which a running
// broker may have open.
func checkFileStore(dir string) []Finding {
	info, err := os.Stat(dir)
	switch {
	case os.IsNotExist(err): // serve creates it
		if parent, err := existingParent(dir); err != nil {
			return []Finding{failure("store.url",
				sentence("The directory of the store cannot be created: "+err.Error()),
				"Create "+dir+" for the user that runs the broker, or let this user write to "+parent+".")}
		}
		return nil
	case err != nil:
		return []Finding{failure("store.url", sentence("The directory of the store cannot be read: "+err.Error()),
			"Make "+dir+" a directory of the user that runs the broker.")}
	case !info.IsDir():
		return []Finding{failure("store.url", dir+" is not a directory.", "Name a directory after file: in store.url.")}
	}
	if err := checkWritable(dir); err != nil {
		return []Finding{failure("store.url", sentence("The directory of the store cannot be used: "+err.Error()),
			"Make "+dir+" a directory of the user that runs the broker.")}
	}
	return nil
}

// existingParent returns the directory in which dir, or the first of its
// parents that does not exist, has to be created. The error says why that is
// not possible.
func existingParent(dir string) (string, error) {
	for {
		dir = filepath.Dir(dir)
		if _, err := os.Stat(dir); !os.IsNotExist(err) || dir == filepath.Dir(dir) {
			return dir, checkWritable(dir)
		}
	}
}

// capital returns a text with a capital letter at the beginning.
func capital(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + text[1:]
}
