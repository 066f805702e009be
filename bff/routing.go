package bff

import (
	"fmt"
	"slices"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

// findRoute returns the route that a path lies under, or nil. It fails if a
// lenient server would read the path as lying under a longer route, or under
// the prefix of the endpoints. strict is the path by which the route is chosen,
// decoded all that a lenient server may see in it.
func (s *Server) findRoute(strict, decoded string) (*route, error) {
	var found *route
	for _, route := range s.routes {
		if urlpath.Under(strict, route.Path) {
			found = route
			break
		}
	}
	for _, route := range s.routes { // the longest first
		switch {
		case found != nil && len(route.Path) <= len(found.Path):
			return found, s.notUnderPrefix(decoded)
		case !urlpath.LenientlyUnder(decoded, route.Path):
		case found == nil && strict+"/" == route.Path:
			return nil, problem.NotFound // not the app's index: the caller means the API
		default:
			cause := urlpath.Error(decoded, fmt.Sprintf("can be read as lying under the route %q", route.Path))
			return nil, problem.AmbiguousPath.WithCause(cause)
		}
	}
	return found, s.notUnderPrefix(decoded)
}

func (s *Server) notUnderPrefix(decoded string) error {
	if urlpath.LenientlyUnder(decoded, s.prefix) {
		cause := urlpath.Error(decoded, fmt.Sprintf("can be read as lying under %q", s.prefix))
		return problem.AmbiguousPath.WithCause(cause)
	}
	return nil
}

// findSlashRoute returns the route of a path with encoded slashes, or nil if it
// has none that passes them.
func (s *Server) findSlashRoute(escaped, decoded string) (*route, error) {
	if urlpath.CheckExceptSlashes(escaped) != nil {
		return nil, nil
	}
	route, err := s.findRoute(urlpath.DecodeExceptSlashes(escaped), decoded)
	if err != nil || route == nil || route.EncodedSlashes != "pass" {
		return nil, err
	}
	return route, nil
}

// anyReadingUnderRoute reports whether some server could read a path as lying
// under a route or under the prefix of the endpoints. escaped is the path as it
// is in a request line or a URL, without query and fragment. All other paths
// belong to the app, however odd they are.
func (s *Server) anyReadingUnderRoute(escaped string) bool {
	return urlpath.AnyReading(escaped, func(decoded string) bool {
		isOver := func(route *route) bool { return urlpath.LenientlyUnder(decoded, route.Path) }
		return urlpath.LenientlyUnder(decoded, s.prefix) || slices.ContainsFunc(s.routes, isOver)
	})
}
