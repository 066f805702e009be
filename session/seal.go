package session

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/gorilla/securecookie"
)

// keyring holds the operator's session keys. The first seals, all open.
type keyring []serverKey

type serverKey struct {
	secret []byte
	id     [4]byte // which key sealed a record, without a trial of each; tells nothing about the key
}

func newKeyring(keys [][]byte) (keyring, error) {
	if len(keys) == 0 {
		return nil, &FieldError{"Keys", errors.New("missing; at least one key of 32 bytes is needed (cloakroom keygen prints one)")}
	}
	ring := make(keyring, len(keys))
	var errs []error
	for i, k := range keys {
		if len(k) != 32 {
			errs = append(errs, &FieldError{fmt.Sprintf("Keys[%d]", i), fmt.Errorf("has %d bytes, 32 are needed", len(k))})
			continue
		}
		ring[i] = serverKey{secret: k, id: [4]byte(derive(k, nil, "record key id", 4))}
	}
	return ring, errors.Join(errs...)
}

// Codecs returns securecookie codecs for one purpose, in the order of keys, made of keys that serve nothing else.
func Codecs(keys [][]byte, purpose string, maxAge time.Duration) ([]securecookie.Codec, error) {
	ring, err := newKeyring(keys)
	if err != nil {
		return nil, err
	}
	return ring.codecs(purpose, maxAge), nil
}

func (ring keyring) codecs(purpose string, maxAge time.Duration) []securecookie.Codec {
	codecs := make([]securecookie.Codec, len(ring))
	for i, k := range ring {
		c := securecookie.New(derive(k.secret, nil, purpose+" mac", 32), derive(k.secret, nil, purpose+" encryption", 32))
		c.MaxAge(int(maxAge / time.Second))
		c.SetSerializer(securecookie.NopEncoder{})
		codecs[i] = c
	}
	return codecs
}

// record is a Session as it is stored. The short names are for the store's memory.
type record struct {
	Issuer    string          `json:"i"`
	Subject   string          `json:"u"`
	SID       string          `json:"d,omitempty"`
	Claims    json.RawMessage `json:"c,omitempty"`
	CreatedAt int64           `json:"b"` // Unix milliseconds; the other times are milliseconds after it
	ExpiresAt int64           `json:"e"`
	Access    string          `json:"a"`
	Refresh   string          `json:"r,omitempty"`
	ID        string          `json:"t,omitempty"`
	Scope     string          `json:"s,omitempty"`
	Issued    int64           `json:"n"`
	Expiry    *int64          `json:"x,omitempty"`
	Key       string          `json:"k,omitempty"`

	Others map[string]otherRecord `json:"o,omitempty"`
}

// otherRecord is an access token for another target.
type otherRecord struct {
	Access string `json:"a"`
	Scope  string `json:"s,omitempty"`
	Issued int64  `json:"n"`
	Expiry *int64 `json:"x,omitempty"`
}

const recordVersion = 2

// seal returns the session as bytes for the store: version, key id, nonce, ciphertext and tag. Being sealed with a random
// nonce, no two records are alike, which conditional writes rely on. This is the one place that opens a Secret for storage.
func (ring keyring) seal(s *Session) ([]byte, error) {
	var signatures []byte
	apart := func(token Secret) string {
		text, signature := unfold(token.Reveal())
		signatures = appendSized(signatures, signature)
		return text
	}
	after := func(t time.Time) int64 { return t.UnixMilli() - s.CreatedAt.UnixMilli() }
	expiry := func(t Tokens) *int64 {
		if t.Expiry.IsZero() {
			return nil
		}
		return new(after(t.Expiry))
	}
	var others map[string]otherRecord
	for target, t := range s.Tokens.Others {
		if others == nil {
			others = make(map[string]otherRecord)
		}
		others[target] = otherRecord{t.Access.Reveal(), t.Scope, after(t.Issued), expiry(t)}
	}
	plain, err := json.Marshal(record{
		Issuer: s.Issuer, Subject: s.Subject, SID: s.SID, Claims: s.Claims,
		CreatedAt: s.CreatedAt.UnixMilli(), ExpiresAt: after(s.ExpiresAt),
		Access: apart(s.Tokens.Access), Refresh: apart(s.Tokens.Refresh), ID: apart(s.Tokens.ID),
		Scope: s.Tokens.Scope, Issued: after(s.Tokens.Issued), Expiry: expiry(s.Tokens), Key: s.Tokens.Key.Reveal(), Others: others,
	})
	if err != nil {
		return nil, fmt.Errorf("seal session: %w", err)
	}
	k := ring[0]
	header := append([]byte{recordVersion}, k.id[:]...)
	return k.aead(s.ticket).Seal(header, nil, append(signatures, pack(plain)...), []byte(s.ID)), nil
}

// first says whether the first key has sealed a record.
func (ring keyring) first(sealed []byte) bool { return bytes.HasPrefix(sealed[1:], ring[0].id[:]) }

// open is the reverse of seal, for the holder of the ticket.
func (ring keyring) open(t ticket, sealed []byte) (*Session, error) {
	const header = 1 + 4
	if len(sealed) < header || sealed[0] != recordVersion {
		return nil, errors.New("open session: not a record of this version")
	}
	for _, k := range ring {
		if k.id != [4]byte(sealed[1:header]) {
			continue
		}
		id := t.sessionID
		packed, err := k.aead(t).Open(nil, nil, sealed[header:], []byte(id))
		if err != nil {
			return nil, fmt.Errorf("open session: %w", err)
		}
		var signatures [3][]byte // of the access, the refresh and the ID token
		for i := range signatures {
			if signatures[i], packed, err = cutSized(packed); err != nil {
				return nil, fmt.Errorf("open session: %w", err)
			}
		}
		plain, err := unpack(packed)
		if err != nil {
			return nil, fmt.Errorf("open session: %w", err)
		}
		var rec record
		if err := json.Unmarshal(plain, &rec); err != nil {
			return nil, fmt.Errorf("open session: %w", err)
		}
		after := func(ms int64) time.Time { return time.UnixMilli(rec.CreatedAt + ms) }
		expiry := func(ms *int64) time.Time {
			if ms == nil {
				return time.Time{}
			}
			return after(*ms)
		}
		var others map[string]Tokens
		for target, t := range rec.Others {
			if others == nil {
				others = make(map[string]Tokens)
			}
			others[target] = Tokens{Access: Secret(t.Access), Scope: t.Scope, Issued: after(t.Issued), Expiry: expiry(t.Expiry)}
		}
		return &Session{
			ID: id, Issuer: rec.Issuer, Subject: rec.Subject, SID: rec.SID, Claims: rec.Claims,
			CreatedAt: time.UnixMilli(rec.CreatedAt), ExpiresAt: after(rec.ExpiresAt),
			Tokens: Tokens{
				Access: Secret(fold(rec.Access, signatures[0])), Refresh: Secret(fold(rec.Refresh, signatures[1])), ID: Secret(fold(rec.ID, signatures[2])),
				Scope: rec.Scope, Issued: after(rec.Issued), Expiry: expiry(rec.Expiry), Key: Secret(rec.Key), Others: others,
			},
			ticket: t, sealed: sealed,
		}, nil
	}
	return nil, errors.New("open session: it was sealed with a key that is not among the session keys any more")
}

// aead returns the cipher of one session: its key takes both the cookie's half and ours.
func (k serverKey) aead(t ticket) cipher.AEAD {
	block, err := aes.NewCipher(derive(t.dataKey[:], k.secret, "session record", 32))
	if err != nil {
		panic(err) // the key has 32 bytes
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // AES has blocks of 16 bytes
	}
	return aead
}

// derive makes a key for one purpose (RFC 5869).
func derive(secret, salt []byte, purpose string, size int) []byte {
	key, err := hkdf.Key(sha256.New, secret, salt, "cloakroom "+purpose, size)
	if err != nil {
		panic(err) // only for a size beyond 255 hashes
	}
	return key
}
