package config

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/cloakroom-bff/cloakroom/session"
	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// TokenStore is a session.Store that must be closed at the end.
type TokenStore interface {
	session.Store
	io.Closer
	// CountSessions returns how many sessions there are. If there are many, it
	// may be an estimate.
	CountSessions(ctx context.Context) (int, error)
}

// OpenStore returns the store that store.url names. Its only I/O is to read the
// files that store names. The error is an Errors.
func (c *Config) OpenStore(log *slog.Logger) (TokenStore, error) {
	var problems Errors
	store := c.Store.open(log, &problems)
	if len(problems) > 0 {
		if store != nil {
			store.Close()
		}
		return nil, problems.withValues(c)
	}
	return store, nil
}

// IsInMemory reports whether sessions are lost when the process ends.
func (s *Store) IsInMemory() bool { return s.URL == "memory:" }

// IsShared reports whether other processes can use the store.
func (s *Store) IsShared() bool {
	scheme, _, _ := strings.Cut(s.URL.Reveal(), ":")
	return scheme != "memory" && scheme != "file"
}

func (s *Store) open(log *slog.Logger, problems *Errors) TokenStore {
	scheme, _, _ := strings.Cut(s.URL.Reveal(), ":")
	switch scheme {
	case "memory":
		s.checkLocal(problems)
		return new(tokenstore.Memory)
	case "file":
		s.checkLocal(problems)
		return s.openFile(log, problems)
	case "redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster", "unix":
	default:
		problems.add("store.url", "the scheme is not one of memory, file, redis, redis+sentinel, redis+cluster "+
			"(with TLS: rediss, rediss+sentinel, rediss+cluster), unix")
		return nil
	}
	redis := s.redis(log, problems)
	var err error
	if redis.RootCAs, err = certPool(s.CAFile); err != nil {
		problems.add("store.ca_file", "%w", err)
	}
	redis.ClientCertificate = s.clientCertificate(scheme, problems)
	store, err := tokenstore.NewRedis(redis)
	if err != nil {
		*problems = append(*problems, fieldErrors(err, storeKey)...)
		return nil
	}
	return store
}

// redis returns what a reload can change without another store.
func (s *Store) redis(log *slog.Logger, problems *Errors) tokenstore.RedisConfig {
	return tokenstore.RedisConfig{
		URL: s.URL.Reveal(), Password: s.password(problems), Prefix: s.Prefix, Logger: log,
	}
}

// RedisCredentials returns the user and password for new connections to Redis;
// nil with another store. It reads password_file. The error is an Errors.
func (c *Config) RedisCredentials() (*tokenstore.Credentials, error) {
	scheme, _, _ := strings.Cut(c.Store.URL.Reveal(), ":")
	if scheme == "memory" || scheme == "file" {
		return nil, nil
	}
	var problems Errors
	credentials, err := c.Store.redis(nil, &problems).Credentials()
	if err != nil {
		problems = append(problems, fieldErrors(err, storeKey)...)
	}
	if len(problems) > 0 {
		return nil, problems.withValues(c)
	}
	return credentials, nil
}

// FileDir returns the directory of a store in a file. ok is false for another
// store.
func (s *Store) FileDir() (dir string, ok bool) {
	path, ok := strings.CutPrefix(s.URL.Reveal(), "file:")
	return strings.TrimPrefix(path, "//"), ok
}

// checkFileDir reports a directory that is not absolute.
func (s *Store) checkFileDir(problems *Errors) (ok bool) {
	dir, _ := s.FileDir()
	if !filepath.IsAbs(dir) {
		problems.add("store.url", "%q is not file: with an absolute path, such as file:/var/lib/cloakroom",
			s.URL.Reveal())
		return false
	}
	return true
}

// openFile opens the store in a directory.
func (s *Store) openFile(log *slog.Logger, problems *Errors) TokenStore {
	if !s.checkFileDir(problems) {
		return nil
	}
	dir, _ := s.FileDir()
	store, err := tokenstore.NewFile(tokenstore.FileConfig{Dir: dir, Logger: log})
	if err != nil {
		problems.add("store.url", "%w", err)
		return nil
	}
	return store
}

// checkLocal reports keys that are for Redis only.
func (s *Store) checkLocal(problems *Errors) {
	scheme, _, _ := strings.Cut(s.URL.Reveal(), ":")
	for _, setting := range []struct{ key, value string }{
		{"store.cert_file", s.CertFile}, {"store.key_file", s.KeyFile}, {"store.password_file", s.PasswordFile},
	} {
		if setting.value != "" {
			problems.add(setting.key, "%q has no effect: the scheme of store.url is %s", setting.value, scheme)
		}
	}
}

// clientCertificate returns a function that reads cert_file and key_file for
// each connection, because certificates are renewed. It returns nil without
// these files.
func (s *Store) clientCertificate(scheme string, problems *Errors) func() (*tls.Certificate, error) {
	switch {
	case s.CertFile == "" && s.KeyFile == "":
		return nil
	case s.KeyFile == "":
		problems.add("store.key_file", "missing; store.cert_file %q needs its private key", s.CertFile)
		return nil
	case s.CertFile == "":
		problems.add("store.cert_file", "missing; store.key_file %q needs its certificate", s.KeyFile)
		return nil
	case !strings.HasPrefix(scheme, "rediss"):
		problems.add("store.cert_file",
			"%q is for TLS, but the scheme of store.url is %s; use rediss", s.CertFile, scheme)
		return nil
	}
	read := func() (*tls.Certificate, error) {
		cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		return &cert, err
	}
	if _, err := read(); err != nil {
		problems.add("store.cert_file",
			"%q and store.key_file %q are not a certificate and its key: %w", s.CertFile, s.KeyFile, err)
		addUnreadKey(s.CertFile, s.KeyFile, "store.key_file", problems)
	}
	return read
}

// password returns a function that reads password_file for each connection. It
// returns nil without this file.
func (s *Store) password(problems *Errors) func() (string, error) {
	if s.PasswordFile == "" {
		return nil
	}
	read := func() (string, error) { return readPassword(s.PasswordFile) }
	if _, err := read(); err != nil {
		problems.add("store.password_file", "%w", err)
	}
	if hasPassword(s.URL.Reveal()) {
		problems.add("store.password_file",
			"%q is set, but store.url contains a password too; remove one of them", s.PasswordFile)
	}
	return read
}

// hasPassword reports whether a store URL, of one host or of several, holds a
// password.
func hasPassword(storeURL string) bool {
	login, _ := cutLogin(storeURL)
	return strings.Contains(login, ":")
}

// cutLogin returns the user and password in a store URL, of one host or of
// several, and the URL without them.
func cutLogin(storeURL string) (login, without string) {
	scheme, rest, _ := strings.Cut(storeURL, "://")
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	at := strings.LastIndexByte(rest[:end], '@')
	if at < 0 {
		return "", storeURL
	}
	return rest[:at], scheme + "://" + rest[at+1:]
}

// readPassword reads a password from a file, without white space around it.
func readPassword(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	password := strings.TrimSpace(string(text))
	if password == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	return password, nil
}
