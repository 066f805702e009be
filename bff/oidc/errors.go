package oidc

import "errors"

var (
	// ErrUnavailable means that the provider cannot be reached, has not been
	// discovered yet, or did not respond in time. The same request may succeed
	// later.
	ErrUnavailable = errors.New("the provider is unavailable")
	// ErrRefused means that the provider does not accept this client's
	// authorization requests. An operator has to change something.
	ErrRefused = errors.New("the provider refuses the authorization request")
)

// unavailable is an error that is ErrUnavailable and says why.
type unavailable string

func (e unavailable) Error() string { return string(e) }

func (unavailable) Is(target error) bool { return target == ErrUnavailable }

const errNotDiscovered = unavailable("the provider has not been found yet")
