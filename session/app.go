package session

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

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
