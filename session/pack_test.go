package session

import (
	"bytes"
	"testing"
)

func FuzzPack(f *testing.F) {
	for _, token := range []string{
		"", ".", "..", "a.b.c", "opaque", "\x00a\x00b\x00c", "\x00",
		"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2ln", "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.",
		"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2ln\x00", "e30.e30.e30.e30",
		"e30=.e30.x", "e31.e30.x", "AA.e30.x", "_w.e30.x", "e3\n0.e30.x",
	} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		text, signature := splitJWT(token)
		if got := joinJWT(text, signature); got != token && token[0] != 0 { // no token begins with NUL
			t.Errorf("joinJWT: got %q, want %q", got, token)
		}
		b, rest, err := cutSized(append(appendSized(nil, signature), token...))
		if err != nil {
			t.Error(err)
		}
		if !bytes.Equal(b, signature) {
			t.Errorf("cutSized: got %q, want %q", b, signature)
		}
		if string(rest) != token {
			t.Errorf("rest of cutSized: got %q, want %q", rest, token)
		}
		cutSized([]byte(token))
		unpack([]byte(token))
		got, err := unpack(pack([]byte(token)))
		if err != nil {
			t.Error(err)
		}
		if string(got) != token {
			t.Errorf("unpack: got %q, want %q", got, token)
		}
	})
}
