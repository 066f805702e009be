package session

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gorilla/securecookie"
)

// App identifies the application that sessions belong to. All that session
// keys seal is bound to it: cookies, records and the names of indexes. So two
// applications with the same keys in the same store do not see each other's
// sessions, and neither does one application before and after a change of any
// of these three. The zero value is an application of its own.
type App struct {
	Issuer   string // of the provider
	ClientID string
	Origin   string // scheme://host[:port] of the public URL
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

// ErrForeign reports that something was sealed with one of the session keys,
// but for another App. It belongs to somebody else: it is not used, and not
// deleted either.
var ErrForeign = errors.New("it was sealed for another issuer, client_id or public_url")

// keyring holds the operator's session keys for one App. The first seals, all
// open.
type keyring []serverKey

type serverKey struct {
	secret []byte
	id     [4]byte // which key sealed a record, without a trial of each; tells nothing about the key
	app    App
	bound  [sha256.Size]byte // App.Digest, part of what a record is authenticated with
}

func newKeyring(keys [][]byte, app App) (keyring, error) {
	if len(keys) == 0 {
		return nil, &FieldError{"Keys", errors.New("missing; at least one key of 32 bytes is needed (cloakroom keygen prints one)")}
	}
	ring := make(keyring, len(keys))
	var errs []error
	for i, k := range keys {
		if err := checkKey(keys, i); err != nil {
			errs = append(errs, &FieldError{fmt.Sprintf("Keys[%d]", i), err})
			continue
		}
		ring[i] = serverKey{secret: k, id: [4]byte(derive(k, nil, "record key id", 4)), app: app, bound: app.Digest()}
	}
	return ring, errors.Join(errs...)
}

// checkKey refuses a key that cannot be meant. What looks like text is for the
// configuration to judge.
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

// Codecs returns securecookie codecs for one purpose of one App, in the order
// of keys, made of keys that serve nothing else. A value that was sealed for
// another App does not open (see IsForeign). They take a []byte and return one.
func Codecs(keys [][]byte, app App, purpose string, maxAge time.Duration) ([]securecookie.Codec, error) {
	ring, err := newKeyring(keys, app)
	if err != nil {
		return nil, err
	}
	return ring.codecs(purpose, maxAge), nil
}

// codecs is Codecs; a maxAge of 0 means that values have no age limit.
func (ring keyring) codecs(purpose string, maxAge time.Duration) []securecookie.Codec {
	codecs := make([]securecookie.Codec, len(ring))
	for i, k := range ring {
		c := securecookie.New(derive(k.secret, nil, purpose+" mac", 32), derive(k.secret, nil, purpose+" encryption", 32))
		c.MaxAge(int(maxAge / time.Second))
		c.SetSerializer(envelope{[appTagSize]byte(k.bound[:])})
		codecs[i] = c
	}
	return codecs
}

// sealer returns the key that sealed a record; ok is false when it is not among the session keys.
func (ring keyring) sealer(sealed []byte) (k serverKey, ok bool) {
	const header = 1 + 4
	i := slices.IndexFunc(ring, func(k serverKey) bool { return len(sealed) >= header && k.id == [4]byte(sealed[1:header]) })
	if i < 0 {
		return serverKey{}, false
	}
	return ring[i], true
}

// first says whether the first key has sealed a record.
func (ring keyring) first(sealed []byte) bool { return bytes.HasPrefix(sealed[1:], ring[0].id[:]) }

// envelopeVersion is the first octet of what a codec seals.
//
// What a codec seals is this octet, the first appTagSize octets of App.Digest,
// and the payload, all three encrypted and authenticated. Its keys do not
// depend on the App, so a value that was sealed for another one is recognised.
// The rule of recordVersion holds for its changes too.
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

// Deserialize takes the payload out of the envelope, into a *[]byte. Its
// arguments were authenticated before. The error is ErrForeign for the envelope
// of another App.
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

// IsForeign reports whether an error of securecookie.DecodeMulti, with codecs
// that Codecs returned, means that the value was sealed for another App.
func IsForeign(err error) bool {
	var multi securecookie.MultiError
	if errors.As(err, &multi) {
		for _, err := range multi {
			if IsForeign(err) {
				return true
			}
		}
		return false
	}
	var decode securecookie.Error
	return errors.Is(err, ErrForeign) || errors.As(err, &decode) && errors.Is(decode.Cause(), ErrForeign)
}

// derive makes a key for one purpose (RFC 5869).
func derive(secret, salt []byte, purpose string, size int) []byte {
	key, err := hkdf.Key(sha256.New, secret, salt, "cloakroom "+purpose, size)
	if err != nil {
		panic(err) // only for a size beyond 255 hashes
	}
	return key
}
