package bff

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/internal/configerr"
)

// Claims configures the claims of the user.
type Claims struct {
	// Allow are the claims that the app's script can read at Prefix/session.
	// Empty means all. Routes can use all claims.
	Allow []string
	// Map adds claims under other names: name → the path of the value. A path
	// is the name of a claim, or names of nested objects with dots between
	// them, such as realm_access.roles. Nil means none.
	Map map[string]string
}

func (c *Claims) check() error {
	var errs []error
	for name, from := range c.Map {
		if name == "" || from == "" || oidc.IsProtocolClaim(name) || name == "sub" {
			err := fmt.Errorf("%q is not a name to map a claim to", name)
			errs = append(errs, configerr.New("Claims.Map", name, err))
		}
	}
	return errors.Join(errs...)
}

// visible returns the claims that the app may see.
func (c *Claims) visible(user json.RawMessage) (json.RawMessage, error) {
	if len(c.Allow) == 0 {
		return user, nil
	}
	var all, some map[string]json.RawMessage
	if err := json.Unmarshal(user, &all); err != nil {
		return nil, err
	}
	some = make(map[string]json.RawMessage)
	for _, name := range c.Allow {
		if value, ok := all[name]; ok {
			some[name] = value
		}
	}
	return json.Marshal(some)
}
