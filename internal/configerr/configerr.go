// Package configerr has the error that every constructor of this module reports
// for a mistake in its Config. The public packages have an alias of it,
// ConfigError.
package configerr

import (
	"errors"
	"fmt"
)

// Error is a mistake in one field of a Config.
type Error struct {
	// Key is the field in Go syntax, such as MaxLifetime or Routes[0].Path.
	Key string
	// Value is the rejected value as text. It is empty if the field is not set,
	// has no text, or is a secret.
	Value string
	// Err is the problem. Its text quotes the value where that helps, but never
	// a secret.
	Err error
	// Fix is what to do, such as "use index". It is empty if Err says so.
	Fix string
}

// New returns an Error. Value is the text of value. A nil value means none.
func New(key string, value any, err error) *Error {
	e := &Error{Key: key, Err: err}
	if value != nil {
		e.Value = fmt.Sprint(value)
	}
	return e
}

func (e *Error) Error() string {
	if e.Fix == "" {
		return e.Key + ": " + e.Err.Error()
	}
	return e.Key + ": " + e.Err.Error() + "; " + e.Fix
}

func (e *Error) Unwrap() error { return e.Err }

// All returns the errors that errors.Join has joined, at any depth.
func All(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, All(e)...)
	}
	return all
}

// In returns the error of a constructor whose Config is a field of another
// Config: the keys of its Errors begin with the name of that field.
func In(field string, err error) error {
	all := All(err)
	for i, e := range all {
		if mistake, ok := e.(*Error); ok {
			inner := *mistake
			inner.Key = field + "." + inner.Key
			all[i] = &inner
		}
	}
	return errors.Join(all...)
}
