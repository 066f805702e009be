package session

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// recordVersion is the first octet of a record. This version has the layout
//
//	octet  0        recordVersion
//	octets 1 to 4   serverKey.id of the session key that sealed it
//	octets 5 to 16  nonce of AES-256-GCM
//	the rest        ciphertext and tag
//
// The key is HKDF-SHA-256 of the cookie's data key, with the session key as
// salt. The associated data are octets 0 to 4, the 32 octets of App.Digest, and
// Session.ID. The plaintext is the signatures of the access, the refresh and
// the ID token, each preceded by its length as a uvarint, and the JSON of
// record, compressed by DEFLATE with packDictionary.
//
// Rules for changes:
//   - A release also reads the version before its own, and writes that earlier
//     version until all replicas run the new release. So neither an upgrade nor
//     a rollback to the release before signs a user out.
//   - A new member of the JSON is no new version. Members that a release does
//     not know are kept when it writes the record again (record.more). Their
//     names are not reused, and differ in more than the case of letters, which
//     encoding/json ignores.
//   - Everything else is a new version: the cipher, the associated data, the
//     dictionary, the meaning or the type of a member.
//
// Version 3 is the first one with these rules. Earlier versions are not read.
const recordVersion = 3

// RecordVersion is the version of the records that this release writes.
const RecordVersion = recordVersion

// errKeyRemoved means that a record was sealed with a key that is not in the
// keyring.
var errKeyRemoved = errors.New("sealed with a key that is not among the session keys")

const recordHeader = 1 + 4 // octets before the nonce

// record is a Session as it is stored. The short names of the members save
// memory in the store.
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

	RefreshExpiry *int64   `json:"q,omitempty"` // of the refresh token; nil: unknown
	Superseded    []string `json:"p,omitempty"`

	Others map[string]otherRecord `json:"o,omitempty"`

	Refreshes int `json:"f,omitempty"`

	more map[string]json.RawMessage // members that this release does not know
}

// unmarshalRecord parses the JSON of a record, and puts members of a later
// release into more.
func unmarshalRecord(plain []byte) (rec record, err error) {
	known := json.NewDecoder(bytes.NewReader(plain))
	known.DisallowUnknownFields()
	if known.Decode(&rec) == nil {
		return rec, nil
	}
	rec = record{}
	if err := json.Unmarshal(plain, &rec); err != nil {
		return record{}, err
	}
	if err := json.Unmarshal(plain, &rec.more); err != nil {
		return record{}, err
	}
	for f := range reflect.TypeFor[record]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		delete(rec.more, name)
	}
	return rec, nil
}

// marshal is the reverse of unmarshalRecord.
func (rec *record) marshal() ([]byte, error) {
	plain, err := json.Marshal(rec)
	if err != nil || len(rec.more) == 0 {
		return plain, err
	}
	more, err := json.Marshal(rec.more)
	if err != nil {
		return nil, err
	}
	return append(append(plain[:len(plain)-1], ','), more[1:]...), nil
}

// otherRecord is an access token for another target.
type otherRecord struct {
	Access string `json:"a"`
	Scope  string `json:"s,omitempty"`
	Issued int64  `json:"n"`
	Expiry *int64 `json:"x,omitempty"`
}

// seal returns the record of a session, encrypted under the primary key (see
// recordVersion).
func (r *Keyring) seal(s *Session) ([]byte, error) { return r.current()[0].seal(s) }

// seal returns the record of a session, encrypted under k (see recordVersion).
// The nonce is random, so that no two records are equal: conditional writes
// rely on it. seal is the only function that reveals a Secret for storage.
func (k serverKey) seal(s *Session) ([]byte, error) {
	var signatures []byte
	split := func(token Secret) string {
		text, signature := splitJWT(token.Reveal())
		signatures = appendSized(signatures, signature)
		return text
	}
	after := func(t time.Time) int64 { return t.UnixMilli() - s.CreatedAt.UnixMilli() }
	expiry := func(t time.Time) *int64 {
		if t.IsZero() {
			return nil
		}
		return new(after(t))
	}
	var others map[string]otherRecord
	for target, t := range s.Tokens.Others {
		if others == nil {
			others = make(map[string]otherRecord)
		}
		others[target] = otherRecord{t.Access.Reveal(), t.Scope, after(t.Issued), expiry(t.Expiry)}
	}
	var superseded []string
	for _, token := range s.Tokens.Superseded {
		superseded = append(superseded, token.Reveal())
	}
	rec := record{
		Issuer: s.Issuer, Subject: s.Subject, SID: s.SID, Claims: s.Claims,
		CreatedAt: s.CreatedAt.UnixMilli(), ExpiresAt: after(s.limit),
		Access: split(s.Tokens.Access), Refresh: split(s.Tokens.Refresh), ID: split(s.Tokens.ID),
		Scope: s.Tokens.Scope, Issued: after(s.Tokens.Issued), Expiry: expiry(s.Tokens.Expiry),
		Key: s.Tokens.Key.Reveal(), Others: others,
		RefreshExpiry: expiry(s.Tokens.RefreshExpiry), Superseded: superseded, Refreshes: s.refreshes, more: s.more,
	}
	plain, err := rec.marshal()
	if err != nil {
		return nil, fmt.Errorf("seal session: %w", err)
	}
	header := append([]byte{recordVersion}, k.id[:]...)
	packed := append(signatures, pack(plain)...)
	return k.aead(s.ticket).Seal(header, nil, packed, k.associated(recordVersion, s.ID)), nil
}

// associated returns the associated data of a value that k seals for the
// session with an ID. The version is that of the value: a record or an info.
func (k serverKey) associated(version byte, id string) []byte {
	data := append([]byte{version}, k.id[:]...)
	data = append(data, k.digest[:]...)
	return append(data, id...)
}

// open is the reverse of seal, and needs the ticket of the session.
func (r *Keyring) open(t Ticket, sealed []byte) (*Session, error) {
	if len(sealed) < recordHeader {
		return nil, errors.New("open session: the record is incomplete")
	}
	if sealed[0] != recordVersion {
		return nil, fmt.Errorf("open session: the record has version %d, of another release; this one reads version %d",
			sealed[0], recordVersion)
	}
	k, ok := r.keyOf(sealed)
	if !ok {
		return nil, fmt.Errorf("open session: %w", errKeyRemoved)
	}
	id := t.sessionID
	packed, err := k.aead(t).Open(nil, nil, sealed[recordHeader:], k.associated(recordVersion, id))
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
	rec, err := unmarshalRecord(plain)
	if err != nil {
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
		others[target] = Tokens{
			Access: Secret(t.Access), Scope: t.Scope, Issued: after(t.Issued), Expiry: expiry(t.Expiry),
		}
	}
	var superseded []Secret
	for _, token := range rec.Superseded {
		superseded = append(superseded, Secret(token))
	}
	s := &Session{
		ID: id, Issuer: rec.Issuer, Subject: rec.Subject, SID: rec.SID, Claims: rec.Claims,
		CreatedAt: time.UnixMilli(rec.CreatedAt),
		Tokens: Tokens{
			Access: Secret(joinJWT(rec.Access, signatures[0])), Refresh: Secret(joinJWT(rec.Refresh, signatures[1])),
			ID: Secret(joinJWT(rec.ID, signatures[2])), Scope: rec.Scope,
			Issued: after(rec.Issued), Expiry: expiry(rec.Expiry), RefreshExpiry: expiry(rec.RefreshExpiry),
			Superseded: superseded, Key: Secret(rec.Key), Others: others,
		},
		limit: after(rec.ExpiresAt), refreshes: rec.Refreshes, more: rec.more,
		ticket: t, sealed: sealed,
	}
	s.setEnd()
	return s, nil
}

// aead returns the cipher of one session. The key of the cipher depends on the
// data key in the ticket and on k.
func (k serverKey) aead(t Ticket) cipher.AEAD {
	return newAEAD(derive(t.dataKey[:], k.secret, "session record", 32))
}

// newAEAD returns the cipher with a key of 32 bytes. It chooses its nonces
// itself.
func newAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the key has 32 bytes
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // AES has blocks of 16 bytes
	}
	return aead
}
