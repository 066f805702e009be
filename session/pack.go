package session

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/klauspost/compress/flate"
)

// Records are compressed before they are encrypted, to save memory in the
// store: the access token, the ID token and the claims mostly repeat each
// other. The length of a record reveals only how similar they are. Compression
// before encryption is safe here: an attacker cannot inject chosen text next to
// a secret and observe many lengths (CRIME).

// packDictionary is text that records usually contain, the likeliest at the
// end. The dictionary is part of recordVersion: with another dictionary old
// records do not open.
const packDictionary = `zoneinfo":"locale":"en-US","picture":"https://phone_number_verified"` +
	`:address":"birthdate":"groups":["roles":["admin","user"]\"resource_access\":{\"account\":{\"` +
	`roles\":[\"manage-account\",\"manage-account-links\",\"view-profile\"]}},\"realm_access\":{\"` +
	`roles\":[\"offline_access\",\"uma_authorization\",\"default-roles-\"allowed-origins\":[\"` +
	`https://\"amr\":[\"pwd\"],\"ver\":\"tid\":\"oid\":\"uti\":\"rh\":\"client_id\":\"{\"alg\":\"` +
	`ES256\",\"typ\":\"at+jwt\",\"kid\":\"{\"alg\":\"RS256\",\"typ\":\"JWT\",\"kid\":\"\"at_hash\":\"` +
	`\"nonce\":\"\"jti\":\"\"typ\":\"Bearer\",\"typ\":\"ID\",\"azp\":\"\"session_state\":\"\"sid\":\"` +
	`\"acr\":\"1\",\"exp\":1\"iat\":1\"nbf\":1\"auth_time\":1\"iss\":\"https://\"aud\":\"account\",\"` +
	`sub\":\"\"scope\":\"openid profile email offline_access api\"scp\":\"\"email_verified\":true,\"` +
	`name\":\"\"preferred_username\":\"\"given_name\":\"\"family_name\":\"\"email\":\".com\","` +
	`auth_time":1"email_verified":true,"preferred_username":"","given_name":"","family_name":"","` +
	`name":"","email":".com","acr":"1","},"b":179,"e":43200000,"a":"\u0000{\"alg\":\"RS256\",\"typ\"` +
	`:\"at+jwt\",\"kid\":\"","r":"","t":"\u0000{\"alg\":\"RS256\",\"typ\":\"JWT\",\"kid\":\"","s":"` +
	`openid profile email","n":-1,"x":300000}{"i":"https://","u":"","d":"","c":{"sub":"`

var packers = sync.Pool{New: func() any {
	const level = 5 // as small as level 6 but for a percent, in two thirds of the time
	w, err := flate.NewWriterDict(nil, level, []byte(packDictionary))
	if err != nil {
		panic(err) // only for an invalid level
	}
	return w
}}

var unpackers = sync.Pool{New: func() any { return flate.NewReader(nil) }}

func pack(plain []byte) []byte {
	var packed bytes.Buffer
	w := packers.Get().(*flate.Writer)
	defer packers.Put(w)
	w.Reset(&packed)
	w.Write(plain) // to memory: neither can fail
	w.Close()
	return packed.Bytes()
}

func unpack(packed []byte) ([]byte, error) {
	r := unpackers.Get().(io.Reader)
	defer unpackers.Put(r)
	r.(flate.Resetter).Reset(bytes.NewReader(packed), []byte(packDictionary)) // always nil
	plain, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	return plain, nil
}

// splitJWT splits a JWT into its decoded header and payload, which compress
// better than base64, and its signature, which does not compress. A token that
// is not a JWT, or that joinJWT could not restore, is returned as it is.
func splitJWT(token string) (text string, signature []byte) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || strings.ContainsAny(token, "\x00\r\n") {
		return token, nil
	}
	var decoded [3][]byte
	for i, part := range parts {
		b, err := base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || i < 2 && (!utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0) {
			return token, nil
		}
		decoded[i] = b
	}
	return "\x00" + string(decoded[0]) + "\x00" + string(decoded[1]), decoded[2]
}

// joinJWT is the reverse of splitJWT.
func joinJWT(text string, signature []byte) string {
	parts := strings.Split(text, "\x00")
	if len(parts) != 3 || parts[0] != "" {
		return text
	}
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(parts[1])) + "." + encode([]byte(parts[2])) + "." + encode(signature)
}

// appendSized appends the length of b and b, for cutSized.
func appendSized(to, b []byte) []byte {
	return append(binary.AppendUvarint(to, uint64(len(b))), b...)
}

func cutSized(from []byte) (b, rest []byte, err error) {
	size, n := binary.Uvarint(from)
	if n <= 0 || size > uint64(len(from)-n) {
		return nil, nil, errors.New("unpack: truncated")
	}
	return from[n : n+int(size)], from[n+int(size):], nil
}
