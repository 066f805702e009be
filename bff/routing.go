package bff

import (
	"errors"
	"fmt"
	"net/url"
	"slices"

	"github.com/cloakroom-bff/cloakroom/bff/oidc"
	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/bff/proxy"
	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// addRoutes adds the routes of cfg. The error joins those of all routes.
func (a *app) addRoutes(cfg Config, publicURL *url.URL) error {
	var errs []error
	fail := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	for i, r := range cfg.Routes {
		field := fmt.Sprintf("Routes[%d]", i)
		if cfg.Provider.SenderConstraint == oidc.SenderConstraintMTLS && r.Token != TokenNone {
			fail(r.presentCertificate(cfg.Provider.ClientCertificate, field))
		}
		parsed, err := newRoute(r, field, a.prefix)
		fail(err)
		if slices.ContainsFunc(a.routes, func(other *route) bool { return other.Path == parsed.Path }) {
			err := fmt.Errorf("%q is the path of another route too", parsed.Path)
			fail(configerr.New(field+".Path", parsed.Path, err))
		}
		a.routes = append(a.routes, parsed)
	}
	fail(a.checkEncodedSlashes())
	a.shareClaimNames()
	a.upstreams = &proxy.Group{
		PublicURL:      publicURL,
		OwnCookie:      isOwnCookie,
		BodyMinRate:    cfg.BodyMinRate,
		BeforeResponse: a.beforeResponse,
		Detach:         a.detach,
		TracerProvider: cfg.TracerProvider,
		Overloaded:     func() bool { return a.server.memory.isScarce() },
		Logger:         a.log,
	}
	for i, route := range a.routes {
		if route.Handler != nil {
			continue
		}
		var err error
		if route.proxy, err = route.newProxy(a.upstreams); err != nil {
			fail(configerr.New(fmt.Sprintf("Routes[%d].Upstream", i), route.Upstream, err))
		}
	}
	slices.SortStableFunc(a.routes, func(x, y *route) int { return len(y.Path) - len(x.Path) })
	return errors.Join(errs...)
}

// targets returns those for which sessions need access tokens besides their
// own.
func (a *app) targets() []oidc.Target {
	var all []oidc.Target
	for _, route := range a.routes {
		if route.user && route.targetKey != "" {
			all = append(all, route.target)
		}
	}
	return all
}

// withoutLogin reports whether no route uses a session, but some the broker's
// own token: there must be no logins.
func (a *app) withoutLogin() bool {
	return slices.ContainsFunc(a.routes, func(r *route) bool { return r.client }) &&
		!slices.ContainsFunc(a.routes, func(r *route) bool { return r.user })
}

// checkResources verifies that the session's own token is bound to a resource
// if other tokens of the session are (RFC 9700, section 2.3). resources are
// those that the configuration names for it.
func (a *app) checkResources(resources []string) error {
	bound := func(r *route) bool { return r.user && r.target.Resource != "" && !r.target.Exchange }
	unbound := func(r *route) bool { return r.user && r.target.Resource == "" }
	if len(resources) > 0 || !slices.ContainsFunc(a.routes, bound) || !slices.ContainsFunc(a.routes, unbound) {
		return nil
	}
	err := errors.New("missing; without it the session's own token would be good for what other routes " +
		"name as their resource (RFC 9700 2.3)")
	return configerr.New("Provider.Resources", nil, err)
}

// setClientTokens gives the routes that use the broker's own token its source.
// Routes with the same target share one.
func (a *app) setClientTokens() error {
	sources := make(map[string]*oidc.ClientCredentials)
	for _, route := range a.routes {
		if !route.client {
			continue
		}
		if sources[route.targetKey] == nil {
			source, err := a.provider.ClientCredentials(route.target)
			if err != nil {
				return err
			}
			sources[route.targetKey] = source
		}
		route.clientToken = sources[route.targetKey]
	}
	return nil
}

// keepClientTokens takes over the broker's own tokens of another configuration:
// a reload does not request them again.
func (a *app) keepClientTokens(before *app) {
	for _, route := range a.routes {
		for _, old := range before.routes {
			if route.clientToken != nil && old.clientToken != nil && route.targetKey == old.targetKey {
				route.clientToken.Inherit(old.clientToken)
				break
			}
		}
	}
}

// checkEncodedSlashes verifies that no route lies below one that passes encoded
// slashes.
func (a *app) checkEncodedSlashes() error {
	var errs []error
	for i, route := range a.routes {
		if route.EncodedSlashes != EncodedSlashesPass {
			continue
		}
		for _, other := range a.routes {
			if len(other.Path) > len(route.Path) && urlpath.LenientlyUnder(other.Path, route.Path) {
				err := fmt.Errorf("the route %q lies below this one: an encoded slash could hide it", other.Path)
				key := fmt.Sprintf("Routes[%d].EncodedSlashes", i)
				errs = append(errs, configerr.New(key, route.EncodedSlashes, err))
			}
		}
	}
	return errors.Join(errs...)
}

// findRoute returns the route that a path lies under, or nil. It fails if a
// lenient server would read the path as lying under a longer route, or under
// the prefix of the endpoints. strict is the path by which the route is chosen,
// decoded all that a lenient server may see in it.
func (a *app) findRoute(strict, decoded string) (*route, error) {
	var found *route
	for _, route := range a.routes {
		if urlpath.Under(strict, route.Path) {
			found = route
			break
		}
	}
	for _, route := range a.routes { // the longest first
		switch {
		case found != nil && len(route.Path) <= len(found.Path):
			return found, a.notUnderPrefix(decoded)
		case !urlpath.LenientlyUnder(decoded, route.Path):
		case found == nil && strict+"/" == route.Path:
			return nil, problem.NotFound // not the app's index: the caller means the API
		default:
			cause := urlpath.Error(decoded, fmt.Sprintf("can be read as lying under the route %q", route.Path))
			return nil, problem.AmbiguousPath.WithCause(cause)
		}
	}
	return found, a.notUnderPrefix(decoded)
}

func (a *app) notUnderPrefix(decoded string) error {
	if urlpath.LenientlyUnder(decoded, a.prefix) {
		cause := urlpath.Error(decoded, fmt.Sprintf("can be read as lying under %q", a.prefix))
		return problem.AmbiguousPath.WithCause(cause)
	}
	return nil
}

// findSlashRoute returns the route of a path with encoded slashes, or nil if it
// has none that passes them.
func (a *app) findSlashRoute(escaped, decoded string) (*route, error) {
	if urlpath.CheckExceptSlashes(escaped) != nil {
		return nil, nil
	}
	route, err := a.findRoute(urlpath.DecodeExceptSlashes(escaped), decoded)
	if err != nil || route == nil || route.EncodedSlashes != EncodedSlashesPass {
		return nil, err
	}
	return route, nil
}

// anyReadingUnderRoute reports whether some server could read a path as lying
// under a route or under the prefix of the endpoints. escaped is the path as it
// is in a request line or a URL, without query and fragment. All other paths
// belong to the app, however odd they are.
func (a *app) anyReadingUnderRoute(escaped string) bool {
	return urlpath.AnyReading(escaped, func(decoded string) bool {
		isOver := func(route *route) bool { return urlpath.LenientlyUnder(decoded, route.Path) }
		return urlpath.LenientlyUnder(decoded, a.prefix) || slices.ContainsFunc(a.routes, isOver)
	})
}
