package config

import (
	"strings"
	"testing"
)

// The sections have no keys, but a file may have them.
func TestSectionsMetricsAndTracingAreEmpty(t *testing.T) {
	t.Parallel()
	for _, section := range []string{"metrics", "tracing"} {
		for _, text := range []string{section + ": {}", section + ":"} {
			if _, err := load(t, text, nil); err != nil {
				t.Errorf("%s: got %v, want no error", text, err)
			}
		}
		_, err := load(t, section+": {endpoint: http://collector:4318}", nil)
		if err == nil || !strings.Contains(err.Error(), section+".endpoint: ") {
			t.Errorf("a key: got %v, want an error of %s.endpoint", err, section)
		}
	}
}
