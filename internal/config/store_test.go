package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/redistest"
)

// mistakesIn returns what is wrong with the sections of a configuration that is
// good otherwise.
func mistakesIn(t *testing.T, sections string) []string {
	t.Helper()
	c, err := load(t, "server: {public_url: 'https://app.example.com'}\noidc: {issuer: 'https://id.example.com', "+
		"client_id: spa, client_secret: s}\n"+sections, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err = build(c); err == nil {
		return nil
	}
	lines := strings.Split(err.Error(), "\n")
	slices.Sort(lines)
	return lines
}

func wantMistakes(t *testing.T, name string, got []string, want ...string) {
	t.Helper()
	ok := len(got) == len(want)
	for i := range min(len(got), len(want)) {
		ok = ok && strings.HasPrefix(got[i], want[i])
	}
	if !ok {
		t.Errorf("%s: got\n\t%s\nwant\n\t%s", name, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	if strings.Contains(strings.Join(got, ""), "hunter2") {
		t.Errorf("%s: a secret is printed: %v", name, got)
	}
}

func TestMistakesInTheStoreAreReported(t *testing.T) {
	t.Parallel()
	_, caFile, certFile, keyFile := redistest.StartMutualTLS(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	otherKey := writeFile(t, "other.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	password, empty := writeFile(t, "password", "hunter2\n"), writeFile(t, "empty", "\n")
	keys := "\nsession: {keys: [" + goodKey + "]}\n"
	for name, test := range map[string]struct {
		store string
		want  []string
	}{
		"all of it": {fmt.Sprintf("url: rediss://u@h, ca_file: %q, cert_file: %q, key_file: %q, "+
			"password_file: %q", caFile, certFile, keyFile, password), nil},
		"Sentinel": {fmt.Sprintf("url: rediss+sentinel://u@h:1/m, ca_file: %q, cert_file: %q, "+
			"key_file: %q, password_file: %q", caFile, certFile, keyFile, password), nil},
		"Cluster": {fmt.Sprintf("url: 'rediss+cluster://u@h:1,i:2', ca_file: %q, cert_file: "+
			"%q, key_file: %q, password_file: %q", caFile, certFile, keyFile, password), nil},
		"a socket": {fmt.Sprintf("url: 'unix://u@/run/redis.sock?db=1', password_file: %q",
			password), nil},
		"a socket without slashes": {"url: 'unix:/run/redis.sock'", nil},
		"a certificate without a key": {fmt.Sprintf("url: rediss://h, cert_file: %q", certFile),
			[]string{"store.key_file: missing; store.cert_file"}},
		"a key without a certificate": {fmt.Sprintf("url: rediss://h, key_file: %q", keyFile),
			[]string{"store.cert_file: missing; store.key_file"}},
		"a key of another certificate": {fmt.Sprintf("url: rediss://h, cert_file: %q, key_file: %q", certFile,
			otherKey), []string{"store.cert_file: "}},
		"a certificate that is none": {fmt.Sprintf("url: rediss://h, cert_file: %q, key_file: %q", password,
			keyFile), []string{"store.cert_file: "}},
		"a certificate without TLS": {fmt.Sprintf("url: redis://h, cert_file: %q, key_file: %q", certFile,
			keyFile), []string{"store.cert_file: "}},
		"a certificate at a socket": {fmt.Sprintf("url: 'unix:/s', cert_file: %q, key_file: %q", certFile,
			keyFile), []string{"store.cert_file: "}},
		"no such password file": {"url: redis://h, password_file: /nowhere/password",
			[]string{"store.password_file: open /nowhere/password"}},
		"an empty password file": {fmt.Sprintf("url: redis://h, password_file: %q", empty),
			[]string{"store.password_file: " + empty + " is empty"}},
		"two passwords": {fmt.Sprintf("url: 'redis://u:hunter2@h', password_file: %q", password),
			[]string{"store.password_file: "}},
		"two passwords and two hosts": {fmt.Sprintf("url: 'redis+cluster://:hunter2@h:1,i:2', password_file: %q",
			password), []string{"store.password_file: "}},
		"memory": {fmt.Sprintf("url: 'memory:', cert_file: %q, key_file: %q, password_file: "+
			"%q", certFile, keyFile, password), []string{"store.cert_file: ", "store.key_file: ",
			"store.password_file: "}},
		"all mistakes at once": {"url: 'redis://u:hunter2@h:port', ca_file: /nowhere/ca, cert_file: " +
			"/nowhere/c, password_file: /nowhere/p", []string{"store.ca_file: ", "store.key_file: ",
			"store.password_file: ", "store.password_file: ", "store.url: "}},
		"a socket that is no path": {"url: 'unix:redis.sock'", []string{"store.url: not a URL such as unix:"}},
		"another scheme":           {"url: 'unixs:///s'", []string{"store.url: the scheme is not one of"}},
	} {
		wantMistakes(t, name, mistakesIn(t, "store: {"+test.store+"}"+keys), test.want...)
	}
}

func TestSessionKeysThatAreNoSecretsAreMistakes(t *testing.T) {
	t.Parallel()
	encode := func(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
	counted := make([]byte, 32)
	for i := range counted {
		counted[i] = byte(250 + i)
	}
	random := make([]byte, 32)
	rand.Read(random)
	other := strings.NewReplacer("+", "-", "/", "_", "=",
		"").Replace(encode(random)) // the same in the other alphabet
	for name, test := range map[string]struct {
		keys []string
		want []string
	}{
		"good": {[]string{encode(random), goodKey}, nil},
		"zero": {[]string{encode(make([]byte, 32))},
			[]string{"session.keys[0]: [redacted] is not random: all bytes are 0x00"}},
		"one byte": {[]string{goodKey, encode(bytes.Repeat([]byte{0xff}, 32))},
			[]string{"session.keys[1]: [redacted] is not random: all bytes are 0xff"}},
		"a letter": {[]string{encode(bytes.Repeat([]byte("a"), 32))},
			[]string{"session.keys[0]: [redacted] is not random"}},
		"two bytes": {[]string{encode(bytes.Repeat([]byte("ab"), 16))},
			[]string{"session.keys[0]: [redacted] is not random"}},
		"a word": {[]string{encode(bytes.Repeat([]byte("changeme"), 4))},
			[]string{"session.keys[0]: [redacted] is not random"}},
		"counted": {[]string{encode(counted)}, []string{"session.keys[0]: [redacted] is not random: " +
			"its bytes are a sequence"}},
		"twice": {[]string{encode(random), goodKey, encode(random)},
			[]string{"session.keys[2]: [redacted] occurs twice"}},
		"twice, in disguise": {[]string{encode(random), other},
			[]string{"session.keys[1]: [redacted] occurs twice"}},
		"all at once": {[]string{"x", encode(make([]byte, 32)), goodKey, goodKey},
			[]string{"session.keys[0]: ", "session.keys[1]: ", "session.keys[3]: "}},
	} {
		got := mistakesIn(t, "session: {keys: ['"+strings.Join(test.keys, "', '")+"']}\n")
		wantMistakes(t, name, got, test.want...)
		for _, key := range test.keys {
			if key != "x" && strings.Contains(strings.Join(got, ""), key) {
				t.Errorf("%s: a key is printed: %v", name, got)
			}
		}
	}
}
