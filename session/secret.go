package session

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Secret is a string that does not print: every fmt verb, slog handler and
// marshaler writes [redacted] in its place. Only Reveal returns the secret
// itself.
//
// fmt cannot call methods of unexported struct fields, so a Secret belongs in
// exported fields. A Secret must not be the key of a map: encoding/json writes
// keys of kind string as they are.
type Secret string

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// Format writes [redacted], whatever the verb. Without Format, fmt would print
// the secret for a verb that is not for strings, such as %d.
func (s Secret) Format(f fmt.State, _ rune) { f.Write([]byte(redacted)) }

// String returns [redacted].
func (s Secret) String() string { return redacted }

// GoString returns [redacted].
func (s Secret) GoString() string { return redacted }

// LogValue returns [redacted].
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns [redacted].
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns "[redacted]". slog.JSONHandler needs this method for a
// Secret in a struct.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
