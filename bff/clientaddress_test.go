package bff_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff"
)

func TestClientAddressIsTheLastUntrustedOne(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.TrustedProxies = []netip.Prefix{
			netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
			netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:ff::/48"),
		}
	})
	const peer = "127.0.0.1"
	for _, test := range []struct {
		want      string
		list, fwd []string // lines of X-Forwarded-For and Forwarded
	}{
		{"203.0.113.7", []string{"203.0.113.7"}, nil},
		{"203.0.113.7", []string{"203.0.113.7:51234"}, nil},
		{"2001:db8::7", []string{"[2001:db8::7]:51234"}, nil},
		{"2001:db8::7", []string{"[2001:db8::7]"}, nil},
		{"2001:db8::7", []string{"2001:db8::7"}, nil},
		{"203.0.113.7", []string{"::ffff:203.0.113.7"}, nil},
		{"203.0.113.7", []string{"[::ffff:203.0.113.7]:443"}, nil},
		// what is before the client's own address is the client's word
		{"203.0.113.7", []string{"198.51.100.1, 203.0.113.7:1, 10.0.0.1:2, 10.0.0.2"}, nil},
		{"203.0.113.7", []string{"198.51.100.1", "203.0.113.7:1", "10.0.0.1:2,[2001:db8:ff::2]:3"}, nil},
		{"203.0.113.7", []string{"203.0.113.7, ,", "10.0.0.1,"}, nil},
		{"10.0.0.3", []string{"10.0.0.3, 10.0.0.1"}, nil}, // a client inside
		// What cannot be read ends it at the proxy that sent it.
		{peer, []string{"unknown"}, nil},
		{peer, []string{"203.0.113.7, junk"}, nil},
		{"10.0.0.1", []string{"203.0.113.7, junk, 10.0.0.1"}, nil},
		{peer, []string{"203.0.113.7:"}, nil}, {peer, []string{"203.0.113.7:x"}, nil},
		{peer, []string{"203.0.113.7:123456"}, nil}, {peer, []string{"203.0.113.7:1:2"}, nil},
		{peer, []string{"[203.0.113.7]:1"}, nil}, {peer, []string{"[2001:db8::7"}, nil},
		{peer, []string{"[2001:db8::7]x"}, nil}, {peer, []string{"[2001:db8::7]:"}, nil},
		{peer, []string{"[2001:db8::7]1"}, nil},
		{peer, []string{"fe80::1%eth0"}, nil}, {peer, []string{"[fe80::1%25eth0]:1"}, nil},
		{peer, []string{"203.0.113.07"}, nil}, {peer, []string{"203.0.113"}, nil},
		{peer, []string{"0xcb007107"}, nil}, {peer, []string{"203.0.113.7 10.0.0.1"}, nil},
		{peer, []string{`"203.0.113.7`}, nil}, {peer, []string{"client.example"}, nil},
		{peer, []string{"for=203.0.113.7"}, nil},
		// RFC 7239
		{"203.0.113.7", nil, []string{"for=203.0.113.7"}},
		{"203.0.113.7", nil, []string{`For="203.0.113.7:4711";proto=https;by=10.0.0.1`}},
		{"2001:db8::7", nil, []string{`for="[2001:db8::7]:4711"`}},
		{"2001:db8::7", nil, []string{`for="[2001:db8::7]"`}},
		{
			"203.0.113.7",
			nil,
			[]string{
				`for=198.51.100.1;host=evil.example, proto=http;for=203.0.113.7`,
				`for=10.0.0.1, for="[2001:db8:ff::2]:1"`,
			},
		},
		{peer, nil, []string{"for=unknown"}}, {peer, nil, []string{"for=_hidden"}},
		{peer, nil, []string{`for="_SEVKISEK"`}},
		{"10.0.0.1", nil, []string{"for=203.0.113.7, for=unknown, for=10.0.0.1"}},
		{peer, nil, []string{"for=203.0.113.7;for=198.51.100.1"}},
		{peer, nil, []string{"203.0.113.7"}}, {peer, nil, []string{"for"}},
		{peer, nil, []string{`for="203.0.113.7`}}, {peer, nil, []string{`for="203.0.113\.7"`}},
		{peer, nil, []string{"for=203.0.113.7, proto=https"}}, {peer, nil, []string{"for =203.0.113.7"}},
		{"203.0.113.7", nil, []string{`for="x, for=203.0.113.7`}},
		{"203.0.113.7", nil, []string{`by="a,b", for=203.0.113.7`}},
		// Both
		{"203.0.113.7", []string{"203.0.113.7"}, []string{"for=203.0.113.7;proto=https"}},
		{"203.0.113.7", []string{"203.0.113.7, 10.0.0.1"}, []string{`for="203.0.113.7:99"`}},
		{"203.0.113.7", []string{"203.0.113.7"}, []string{"proto=https;host=" + "HOST"}},
		{peer, []string{"203.0.113.7"}, []string{"for=198.51.100.1"}},
		{peer, []string{"203.0.113.7"}, []string{"for=unknown"}},
		{peer, []string{"203.0.113.7"}, []string{"for=10.0.0.1"}},
	} {
		var lines []string
		for _, l := range test.list {
			lines = append(lines, "X-Forwarded-For: "+l)
		}
		for _, l := range test.fwd {
			lines = append(lines, "Forwarded: "+strings.ReplaceAll(l, "HOST", strings.TrimPrefix(a.url, "http://")))
		}
		got := echoed(t, sendTarget(t, a, "/public/x", lines...)).Header["X-Forwarded-For"]
		if len(got) != 1 || got[0] != test.want {
			t.Errorf("X-Forwarded-For %q, Forwarded %q: client: got %q, want %s", test.list, test.fwd, got, test.want)
		}
	}
	logged := a.logs.lines(t, "request")
	if last := logged[len(logged)-1]; last["client"] != peer {
		t.Errorf("client in the log: got %v", last["client"])
	}
}

func TestForwardedHeadersOfUntrustedPeersAreIgnored(t *testing.T) {
	t.Parallel()
	a := newApp(t, nil)
	for _, line := range []string{
		"X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7;host=evil.example",
		"X-Forwarded-Host: evil.example",
	} {
		got := echoed(t, sendTarget(t, a, "/public/x", line)).Header["X-Forwarded-For"]
		if len(got) != 1 || got[0] != "127.0.0.1" {
			t.Errorf("%s: client: got %q", line, got)
		}
	}
}

func TestHostIsTakenFromTheFirstTrustedProxy(t *testing.T) {
	t.Parallel()
	a := newApp(t, func(_ *app, cfg *bff.Config) {
		cfg.TrustedProxies = []netip.Prefix{
			netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
			netip.MustParsePrefix("10.0.0.0/8"),
		}
	})
	host := strings.TrimPrefix(a.url, "http://")
	for _, test := range []struct {
		lines []string
		want  int
	}{
		{[]string{"X-Forwarded-Host: " + host}, 200},
		{[]string{"X-Forwarded-Host: " + strings.ToUpper(host)}, 200},
		{[]string{"X-Forwarded-Host: evil.example"}, 421},
		{[]string{"X-Forwarded-Host: " + host + ", lb.internal", "X-Forwarded-For: 203.0.113.7, 10.0.0.1"}, 200},
		{
			[]string{
				"X-Forwarded-Host: " + host, "X-Forwarded-Host: lb.internal",
				"X-Forwarded-For: 203.0.113.7, 10.0.0.1",
			},
			200,
		},
		{[]string{"X-Forwarded-Host: " + host + ", evil.example", "X-Forwarded-For: 203.0.113.7"}, 421},
		{[]string{"X-Forwarded-Host: evil.example, " + host, "X-Forwarded-For: 203.0.113.7"}, 200},
		{[]string{`Forwarded: for=203.0.113.7;host="` + host + `", for=10.0.0.1;host=lb.internal`}, 200},
		{[]string{`Forwarded: for=203.0.113.7;host=evil.example, for=10.0.0.1;host="` + host + `"`}, 421},
		{[]string{`Forwarded: for=198.51.100.1;host=evil.example, for=203.0.113.7;host="` + host + `"`}, 200},
		{[]string{"Forwarded: for=203.0.113.7", "X-Forwarded-Host: evil.example"}, 421},
		{[]string{`Forwarded: host="` + host + `"`, "X-Forwarded-Host: evil.example"}, 421},
		{[]string{"Forwarded: host=evil.example", "X-Forwarded-Host: " + host}, 421},
	} {
		if got := sendTarget(t, a, "/public/x", test.lines...).StatusCode; got != test.want {
			t.Errorf("%q: got %d, want %d", test.lines, got, test.want)
		}
	}
}
