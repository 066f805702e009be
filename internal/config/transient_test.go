package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"syscall"
	"testing"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
)

func TestMistakesAreNotTransient(t *testing.T) {
	t.Parallel()
	unread := &fs.PathError{Op: "open", Path: "x", Err: syscall.EIO}
	down := fmt.Errorf("%w: connection refused", oidc.ErrUnavailable)
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"no error":              {nil, false},
		"a mistake":             {Errors{{Key: "routes", Err: errors.New("bad")}}, false},
		"a file not readable":   {Errors{{Key: "oidc.ca_file", Err: fmt.Errorf("read: %w", unread)}}, true},
		"a missing file":        {Errors{{Key: "oidc.ca_file", Err: &fs.PathError{Err: syscall.ENOENT}}}, false},
		"a mistake and a file":  {Errors{{Err: unread}, {Err: errors.New("bad")}}, false},
		"a provider and a file": {Errors{{Err: unread}, {Key: "oidc.issuer", Err: down}}, true},
		"a foreign certificate": {
			fmt.Errorf("%w: %w", oidc.ErrUnavailable, &url.Error{Err: &tls.CertificateVerificationError{}}), false,
		},
	} {
		if got := IsTransient(test.err); got != test.want {
			t.Errorf("%s: got %t, want %t", name, got, test.want)
		}
	}
}
