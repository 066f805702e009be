package config

import (
	"strings"
	"testing"
)

// The section has no keys, but a file may have it.
func TestSectionTracingIsEmpty(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"tracing: {}", "tracing:"} {
		if _, err := load(t, text, nil); err != nil {
			t.Errorf("%s: got %v, want no error", text, err)
		}
	}
	_, err := load(t, "tracing: {endpoint: http://collector:4318}", nil)
	if err == nil || !strings.Contains(err.Error(), "tracing.endpoint: ") {
		t.Errorf("a key: got %v, want an error of tracing.endpoint", err)
	}
}
