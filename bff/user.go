package bff

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
)

// LogUsers is how the ID of a user (sub) appears in logs and events.
type LogUsers string

const (
	// UsersHashed, the default, logs a keyed hash of issuer and sub. It is the
	// same in all lines, on all replicas with the same first session key. It
	// changes with that key.
	UsersHashed LogUsers = "hash"
	// UsersPlain logs the sub as it is.
	UsersPlain LogUsers = "plain"
	// UsersOmitted logs no user.
	UsersOmitted LogUsers = "none"
)

// loggedUsers turns subjects into the form that logs and events show. set is
// called first.
type loggedUsers struct {
	form LogUsers
	key  []byte // of the hashes

	mu     sync.RWMutex      // guards hashes
	hashes map[string]string // :: subject → hash; of at most maxHashedUsers, because a hash costs more than a log line
}

const maxHashedUsers = 10_000 // two megabytes

// set sets the form, and makes the key of the hashes from the first of the
// session keys. All users are of one issuer, so the key is bound to it. The
// error is a *ConfigError.
func (u *loggedUsers) set(form LogUsers, keys [][]byte, issuer string) error {
	switch form {
	case "":
		form = UsersHashed
	case UsersHashed, UsersPlain, UsersOmitted:
	default:
		return configerr.New("LogUsers", string(form), fmt.Errorf("%q is not hash, plain or none", form))
	}
	if len(keys) == 0 {
		return nil // session.NewManager reports it
	}
	u.form = form
	key, err := hkdf.Key(sha256.New, keys[0], nil, "cloakroom logged user "+issuer, sha256.Size)
	u.key = key
	return err
}

// userHashSize is the size of a user's hash in bytes. Of a million users, two
// have the same hash with a probability of 1 in 37 million.
const userHashSize = 8

// user returns a subject as Config.LogUsers says. It is empty if users are
// omitted, or if there is no subject.
func (a *app) user(subject string) string {
	form := a.server.current.Load().users.form // the one in force also for what began before it
	switch {
	case subject == "" || form == UsersOmitted:
		return ""
	case form == UsersPlain:
		return subject
	}
	return a.users.hash(subject)
}

func (u *loggedUsers) hash(subject string) string {
	u.mu.RLock()
	hashed, ok := u.hashes[subject]
	u.mu.RUnlock()
	if ok {
		return hashed
	}
	mac := hmac.New(sha256.New, u.key)
	mac.Write([]byte(subject))
	hashed = hex.EncodeToString(mac.Sum(nil)[:userHashSize])
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.hashes == nil || len(u.hashes) >= maxHashedUsers {
		u.hashes = make(map[string]string)
	}
	u.hashes[strings.Clone(subject)] = hashed
	return hashed
}
