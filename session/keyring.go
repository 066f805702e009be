package session

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/gorilla/securecookie"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
)

// App identifies the application that sessions belong to. Everything that
// session keys seal or name is bound to the App: cookies, records and indexes.
// So two Apps with the same keys in the same store do not see each other's
// sessions. If a field of its App changes, an application does not see its
// earlier sessions any more. The zero value is a valid App, different from all
// others.
type App struct {
	Issuer   string // of the provider
	ClientID string
	Origin   string // scheme://host[:port] of the public URL, and its path if it has one
}

// Digest returns a hash of the application and of parts. The encoding is
// injective: each string is preceded by its length.
func (a App) Digest(parts ...string) [sha256.Size]byte {
	text := []byte("cloakroom app")
	for _, part := range append([]string{a.Issuer, a.ClientID, a.Origin}, parts...) {
		text = binary.BigEndian.AppendUint64(text, uint64(len(part)))
		text = append(text, part...)
	}
	return sha256.Sum256(text)
}

// ErrForeign means that one of the session keys sealed a value, but for another
// App. The value belongs to the other App, and is neither used nor deleted.
var ErrForeign = errors.New("sealed for another issuer, client_id or public_url")

// Keyring holds the operator's session keys for one App. The first key is the
// primary key. Only the primary key seals, and all keys open, so that keys can
// be rotated without a logout.
type Keyring struct {
	keys []serverKey
	next atomic.Pointer[Keyring] // see ReplacedBy; nil: none
}

type serverKey struct {
	secret []byte
	id     [4]byte // stored with each record, to find its key without trials; reveals nothing of the key
	app    App
	digest [sha256.Size]byte // App.Digest, part of the associated data of records
}

// NewKeyring returns a Keyring of keys, each 32 random bytes. The error joins a
// *ConfigError for every mistake, with a field such as Keys[1].
func NewKeyring(keys [][]byte, app App) (*Keyring, error) {
	if len(keys) == 0 {
		return nil, configerr.New("Keys", nil,
			errors.New("missing; at least one key of 32 bytes is needed (cloakroom keygen prints one)"))
	}
	ring := &Keyring{keys: make([]serverKey, len(keys))}
	var errs []error
	for i, k := range keys {
		if err := checkKey(keys, i); err != nil {
			errs = append(errs, configerr.New(fmt.Sprintf("Keys[%d]", i), nil, err))
			continue
		}
		id := [4]byte(derive(k, nil, "record key id", 4))
		ring.keys[i] = serverKey{secret: k, id: id, app: app, digest: app.Digest()}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return ring, nil
}

// ReplacedBy makes a Manager that still ends its work use the keys of next: the
// Manager of next may seal the records of the same sessions with a key that r
// does not have. The keys of r still open records. Codecs do not change. If
// next is for another App, ReplacedBy does nothing.
func (r *Keyring) ReplacedBy(next *Keyring) {
	if next != r && next.keys[0].app == r.keys[0].app {
		r.next.Store(next)
	}
}

// current returns the keys of r and of those that have replaced it, the primary
// key first.
func (r *Keyring) current() []serverKey {
	next := r.next.Load()
	if next == nil {
		return r.keys
	}
	keys := slices.Clone(next.current())
	for _, k := range r.keys {
		if _, ok := findKey(keys, k.id); !ok {
			keys = append(keys, k)
		}
	}
	return keys
}

// checkKey returns an error for a key that cannot be a secret. Keys that look
// like text are for the configuration to judge.
func checkKey(keys [][]byte, i int) error {
	k := keys[i]
	switch first := slices.IndexFunc(keys, func(other []byte) bool { return bytes.Equal(other, k) }); {
	case len(k) != 32:
		return fmt.Errorf("has %d bytes, 32 are needed", len(k))
	case bytes.Equal(k, make([]byte, 32)):
		return errors.New("is 32 zero bytes, not a secret (cloakroom keygen prints one)")
	case first < i:
		return fmt.Errorf("is the same as Keys[%d]; each key is listed once", first)
	}
	return nil
}

// keyOf returns the key that sealed a record; ok is false if that key is not in
// the keyring.
func (r *Keyring) keyOf(sealed []byte) (k serverKey, ok bool) {
	if len(sealed) < recordHeader {
		return serverKey{}, false
	}
	return findKey(r.current(), [4]byte(sealed[1:recordHeader]))
}

func findKey(keys []serverKey, id [4]byte) (k serverKey, ok bool) {
	i := slices.IndexFunc(keys, func(k serverKey) bool { return k.id == id })
	if i < 0 {
		return serverKey{}, false
	}
	return keys[i], true
}

// sealedWithPrimary reports whether the primary key sealed a record.
func (r *Keyring) sealedWithPrimary(sealed []byte) bool {
	return bytes.HasPrefix(sealed[1:], r.current()[0].id[:])
}

// Names derives a name from purpose and parts, once with each session key, the
// primary key first. The names are meant for keys in a Store: they do not
// reveal the parts, and differ from the names of any other App.
func (r *Keyring) Names(purpose string, parts ...string) []string {
	names := make([]string, len(r.keys))
	for i, k := range r.keys {
		names[i] = k.name(purpose, parts...)
	}
	return names
}

// Codec seals values that leave the server: cookies and state parameters. A
// Codec serves one purpose and one App, and is safe for concurrent use.
type Codec struct {
	codecs []securecookie.Codec // in the order of the keys
}

// Codec returns the codec for a purpose, which must be different for each use.
// Values older than maxAge do not open; a maxAge of zero means any age.
func (r *Keyring) Codec(purpose string, maxAge time.Duration) *Codec {
	c := &Codec{make([]securecookie.Codec, len(r.keys))}
	for i, k := range r.keys {
		codec := securecookie.New(
			derive(k.secret, nil, purpose+" mac", 32),
			derive(k.secret, nil, purpose+" encryption", 32),
		)
		codec.MaxAge(int(maxAge / time.Second))
		codec.SetSerializer(envelope{[appTagSize]byte(k.digest[:])})
		c.codecs[i] = codec
	}
	return c
}

// Seal encrypts payload, authenticates payload and name, and returns text that
// is fit for a cookie or a URL. Seal fails if the text would be longer than
// 4096 bytes.
func (c *Codec) Seal(name string, payload []byte) (string, error) {
	return c.codecs[0].Encode(name, payload)
}

// Open returns the payload of a value that Seal returned for the same name. The
// error wraps ErrForeign if the value was sealed for another App.
func (c *Codec) Open(name, value string) ([]byte, error) {
	payload, _, err := c.open(name, value)
	return payload, err
}

// open is Open, and also returns the index of the key that sealed the value.
func (c *Codec) open(name, value string) (payload []byte, key int, err error) {
	var errs []error
	for i, codec := range c.codecs {
		err := codec.Decode(name, value, &payload)
		if err == nil {
			return payload, i, nil
		}
		if decode := securecookie.Error(nil); errors.As(err, &decode) && errors.Is(decode.Cause(), ErrForeign) {
			return nil, 0, ErrForeign
		}
		errs = append(errs, err)
	}
	return nil, 0, errors.Join(errs...)
}

// envelopeVersion is the first octet of what a codec seals. The first
// appTagSize octets of App.Digest and the payload follow. All three are
// encrypted and authenticated. The keys do not depend on the App, so that a
// value for another App is recognised. The rules of recordVersion hold for
// changes.
const (
	envelopeVersion = 1
	appTagSize      = 16
)

// envelope is the securecookie.Serializer that binds a value to an App.
type envelope struct{ tag [appTagSize]byte }

// Serialize puts a payload, a []byte, into the envelope.
func (e envelope) Serialize(src any) ([]byte, error) {
	payload, ok := src.([]byte)
	if !ok {
		return nil, fmt.Errorf("seal a %T: not a []byte", src)
	}
	sealed := append([]byte{envelopeVersion}, e.tag[:]...)
	return append(sealed, payload...), nil
}

// Deserialize takes the payload out of the envelope src and puts it into dst, a
// *[]byte. The envelope has been authenticated. The error is ErrForeign for the
// envelope of another App.
func (e envelope) Deserialize(src []byte, dst any) error {
	payload, ok := dst.(*[]byte)
	if !ok {
		return fmt.Errorf("open into a %T: not a *[]byte", dst)
	}
	if len(src) < 1+appTagSize || src[0] != envelopeVersion {
		return errors.New("not an envelope of this version")
	}
	if [appTagSize]byte(src[1:1+appTagSize]) != e.tag {
		return ErrForeign
	}
	*payload = src[1+appTagSize:]
	return nil
}

// derive returns a key for one purpose (RFC 5869).
func derive(secret, salt []byte, purpose string, size int) []byte {
	key, err := hkdf.Key(sha256.New, secret, salt, "cloakroom "+purpose, size)
	if err != nil {
		panic(err) // only for a size beyond 255 hashes
	}
	return key
}
