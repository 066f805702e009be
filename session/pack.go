package session

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"
)

// A record is packed before it is sealed, for the store's memory: most of it is JSON that says the same three times, in the access token, the ID
// token and the claims. Whoever sees its length learns how alike they are, and nothing else: no one who can choose what
// goes into a record can also choose what goes beside it, and see many.

// packDictionary is what records tend to hold; what is likeliest comes last. It belongs to recordVersion: with another one old records do not open.
const packDictionary = `zoneinfo":"locale":"en-US","picture":"https://phone_number_verified":address":"birthdate":"groups":["roles":["admin","user"]` +
	`\"resource_access\":{\"account\":{\"roles\":[\"manage-account\",\"manage-account-links\",\"view-profile\"]}},` +
	`\"realm_access\":{\"roles\":[\"offline_access\",\"uma_authorization\",\"default-roles-` +
	`\"allowed-origins\":[\"https://\"amr\":[\"pwd\"],\"ver\":\"tid\":\"oid\":\"uti\":\"rh\":\"client_id\":\"` +
	`{\"alg\":\"ES256\",\"typ\":\"at+jwt\",\"kid\":\"{\"alg\":\"RS256\",\"typ\":\"JWT\",\"kid\":\"` +
	`\"at_hash\":\"\"nonce\":\"\"jti\":\"\"typ\":\"Bearer\",\"typ\":\"ID\",\"azp\":\"\"session_state\":\"\"sid\":\"\"acr\":\"1\",` +
	`\"exp\":1\"iat\":1\"nbf\":1\"auth_time\":1\"iss\":\"https://\"aud\":\"account\",\"sub\":\"` +
	`\"scope\":\"openid profile email offline_access api\"scp\":\"` +
	`\"email_verified\":true,\"name\":\"\"preferred_username\":\"\"given_name\":\"\"family_name\":\"\"email\":\".com\",` +
	`"auth_time":1"email_verified":true,"preferred_username":"","given_name":"","family_name":"","name":"","email":".com","acr":"1",` +
	`{"i":"https://","u":"","d":"","c":{"sub":""},"b":17"e":17"a":"\u0000{"r":""t":"\u0000{"s":"openid profile email offline_access","n":17"x":17`

var packers = sync.Pool{New: func() any {
	w, err := flate.NewWriterDict(nil, flate.DefaultCompression, []byte(packDictionary))
	if err != nil {
		panic(err) // only for a level that is none
	}
	return w
}}

var unpackers = sync.Pool{New: func() any { return flate.NewReader(nil) }}

func pack(plain []byte) []byte {
	var packed bytes.Buffer
	w := packers.Get().(*flate.Writer)
	defer packers.Put(w)
	w.Reset(&packed)
	w.Write(plain) // to memory: neither of the two can fail
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

// unfold writes out what a JWT says, which packs better than its base64. What is not a JWT, or would not come back as it was, stays as it is.
func unfold(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 || strings.ContainsAny(token, "\x00\r\n") {
		return token
	}
	for i := range 2 {
		b, err := base64.RawURLEncoding.Strict().DecodeString(parts[i])
		if err != nil || !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 {
			return token
		}
		parts[i] = string(b)
	}
	return "\x00" + strings.Join(parts, "\x00")
}

// fold is the reverse of unfold.
func fold(unfolded string) string {
	parts := strings.Split(unfolded, "\x00")
	if len(parts) != 4 || parts[0] != "" {
		return unfolded
	}
	for i := 1; i <= 2; i++ {
		parts[i] = base64.RawURLEncoding.EncodeToString([]byte(parts[i]))
	}
	return strings.Join(parts[1:], ".")
}
