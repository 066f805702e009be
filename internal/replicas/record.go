// Package replicas lets the replicas of a broker find each other in their
// store, and reports in what they differ. Replicas with different session keys,
// for example, sign users out that another replica has signed in.
package replicas

import (
	"cmp"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// Description is what a replica compares with the others.
type Description struct {
	Version string // of the program
	Commit  string
	App     session.App
	Keys    [][]byte // session.keys, each 32 random bytes
	// Settings is the rest of the configuration, by key. Only keyed hashes of
	// the values leave the process.
	Settings map[string]session.Secret
}

// Hash returns a hash of the settings, of 48 bits. It is equal for replicas
// with the same settings and the same first key, and reveals nothing of either.
func (d Description) Hash() uint64 {
	if len(d.Keys) == 0 {
		return 0
	}
	all, err := hex.DecodeString(newKeyInfo(d.Keys[0], d.Settings).hash())
	if err != nil {
		panic(err) // hash has encoded it
	}
	return binary.BigEndian.Uint64(all) >> 16
}

// record is what a replica writes to the store, as JSON. Other releases read
// it: members are only added.
type record struct {
	Replica       string    `json:"replica"`
	StartedAt     time.Time `json:"started_at"`
	Version       string    `json:"version"`
	Commit        string    `json:"commit"`
	RecordVersion int       `json:"record_version"` // of sessions
	Issuer        string    `json:"issuer"`
	ClientID      string    `json:"client_id"`
	Origin        string    `json:"origin"`
	Keys          []keyInfo `json:"keys"` // in the order of session.keys
}

// keyInfo is what a record has for a session key. It reveals nothing of the key
// and of the settings: both are the output of a function keyed with 32 random
// bytes. A plain hash of a weak client secret could be guessed.
type keyInfo struct {
	Fingerprint string            `json:"fingerprint"`
	Settings    map[string]string `json:"settings"` // :: key of the configuration → hash
}

// hash returns a hash of all settings.
func (k keyInfo) hash() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(k.Settings)) {
		h.Write([]byte(name + "\x00" + k.Settings[name] + "\x00"))
	}
	return hex.EncodeToString(h.Sum(nil)[:hashSize])
}

// hashSize is the length of fingerprints and hashes in octets.
const hashSize = 8

func newKeyInfo(key []byte, settings map[string]session.Secret) keyInfo {
	info := keyInfo{
		Fingerprint: hex.EncodeToString(derive(key, "fingerprint", hashSize)),
		Settings:    make(map[string]string, len(settings)),
	}
	macKey := derive(key, "settings", sha256.Size)
	for name, value := range settings {
		mac := hmac.New(sha256.New, macKey)
		mac.Write([]byte(name + "\x00" + value.Reveal()))
		info.Settings[name] = hex.EncodeToString(mac.Sum(nil)[:hashSize])
	}
	return info
}

// derive returns a secret for one purpose (RFC 5869).
func derive(key []byte, purpose string, size int) []byte {
	secret, err := hkdf.Key(sha256.New, key, nil, "cloakroom replica "+purpose, size)
	if err != nil {
		panic(err) // only for a size beyond 255 hashes
	}
	return secret
}

func newRecord(id string, startedAt time.Time, d Description) record {
	rec := record{
		Replica: id, StartedAt: startedAt,
		Version: d.Version, Commit: d.Commit, RecordVersion: session.RecordVersion,
		Issuer: d.App.Issuer, ClientID: d.App.ClientID, Origin: d.App.Origin,
	}
	for _, key := range d.Keys {
		rec.Keys = append(rec.Keys, newKeyInfo(key, d.Settings))
	}
	return rec
}

// fingerprints returns the fingerprints of the session keys in their order.
func (r record) fingerprints() []string {
	all := make([]string, len(r.Keys))
	for i, k := range r.Keys {
		all[i] = k.Fingerprint
	}
	return all
}

// key returns what r has for the session key with a fingerprint.
func (r record) key(fingerprint string) (k keyInfo, ok bool) {
	i := slices.Index(r.fingerprints(), fingerprint)
	if i < 0 {
		return keyInfo{}, false
	}
	return r.Keys[i], true
}

// sameApp reports whether two replicas are meant to serve one app: they have
// the same origin, or are the same client of the same provider. Apps that share
// a store on purpose have neither in common. A replica of which one of these
// was changed by mistake still has the other.
func sameApp(a, b record) bool {
	return a.Origin == b.Origin || a.Issuer == b.Issuer && a.ClientID == b.ClientID
}

// difference is a key in which two replicas differ.
type difference struct {
	key         string
	here, there string   // the values, or fingerprints
	settings    []string // of keyConfiguration, instead of values
}

// detail changes with the difference.
func (d difference) detail() string {
	return strings.Join(append([]string{d.here, d.there}, d.settings...), "\x00")
}

// Keys of a difference that are no keys of the configuration.
const (
	keyVersion       = "version"
	keyConfiguration = "configuration" // any key that is not compared by itself
)

// differences returns in what there differs from here. The order of
// session.keys does not matter, because it changes in a rotation. Replicas of
// different apps are compared only in what makes them different apps.
func differences(here, there record) []difference {
	var all []difference
	compare := func(key, here, there string) {
		if here != there {
			all = append(all, difference{key: key, here: here, there: there})
		}
	}
	compare("oidc.issuer", here.Issuer, there.Issuer)
	compare("oidc.client_id", here.ClientID, there.ClientID)
	compare("server.public_url", here.Origin, there.Origin)
	if !sameApp(here, there) {
		return all
	}
	keys := func(r record) string { return strings.Join(slices.Sorted(slices.Values(r.fingerprints())), " ") }
	compare("session.keys", keys(here), keys(there))
	compare(keyVersion, here.release(), there.release())
	if settings := differentSettings(here, there); len(settings) > 0 {
		all = append(all, difference{key: keyConfiguration, settings: settings})
	}
	return all
}

// release returns the version of the program as text.
func (r record) release() string {
	return fmt.Sprintf("%s, commit %s, record version %d", r.Version, r.Commit, r.RecordVersion)
}

// differentSettings returns the keys of the configuration whose values differ.
// It finds none if the replicas have no session key in common, as the hashes
// cannot be compared.
func differentSettings(here, there record) []string {
	for _, ours := range here.Keys {
		theirs, ok := there.key(ours.Fingerprint)
		if !ok {
			continue
		}
		names := make(map[string]bool)
		for _, settings := range []map[string]string{ours.Settings, theirs.Settings} {
			for name := range settings {
				if ours.Settings[name] != theirs.Settings[name] {
					names[name] = true
				}
			}
		}
		return slices.Sorted(maps.Keys(names))
	}
	return nil
}

// displayKey returns the fingerprint of the session key of self that most
// records have. Hashes of configurations are shown for this key, so that equal
// configurations have equal hashes also during a rotation.
func displayKey(self record, others []record) string {
	having := func(fingerprint string) (n int) {
		for _, other := range others {
			if _, ok := other.key(fingerprint); ok {
				n++
			}
		}
		return n
	}
	fingerprints := self.fingerprints()
	if len(fingerprints) == 0 {
		return ""
	}
	return slices.MaxFunc(fingerprints, func(a, b string) int {
		return cmp.Or(cmp.Compare(having(a), having(b)), strings.Compare(a, b))
	})
}

// configurationHash returns the hash of the configuration for the session key
// with a fingerprint, or for the first key if r does not have it.
func (r record) configurationHash(fingerprint string) string {
	if k, ok := r.key(fingerprint); ok {
		return k.hash()
	}
	if len(r.Keys) == 0 {
		return ""
	}
	return r.Keys[0].hash()
}
