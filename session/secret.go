package session

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Secret is a string that does not print: every fmt verb, every slog handler and every marshaller shows [redacted]
// in its place. Reveal is the one way to read it.
//
// fmt can only ask an exported struct field to redact itself, so a Secret belongs in exported fields. It is not for the
// key of a map either: encoding/json writes a key of kind string as it is.
type Secret string

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// Format writes [redacted], whatever the verb: fmt would print the raw string for a verb that does not fit one, %d say.
func (s Secret) Format(f fmt.State, _ rune) { f.Write([]byte(redacted)) }

// String returns [redacted].
func (s Secret) String() string { return redacted }

// GoString returns [redacted].
func (s Secret) GoString() string { return redacted }

// LogValue returns [redacted].
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns [redacted].
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns "[redacted]". slog's JSONHandler needs it for a Secret that is nested in a struct.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
