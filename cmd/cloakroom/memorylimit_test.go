package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestASmallHeapIsCollectedLessOften(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		env         map[string]string
		least, most float64 // percentage of growth
	}{
		"by default":         {nil, 101, 1600},
		"with a small limit": {map[string]string{"GOMEMLIMIT": "32MiB"}, 100, 100}, // which is 4 MiB of garbage
		"as GOGC demands":    {map[string]string{"GOGC": "70"}, 70, 70},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, nil)
			f.startReplicas(test.env, "memory:")
			admin := f.replicas[0].admin
			ready(t, admin)
			if got := scrape(t, admin)["go_gc_gogc_percent"]; got < test.least || got > test.most {
				t.Errorf("got %v %%, want %v to %v", got, test.least, test.most)
			}
		})
	}
}

func TestMemoryLimitOfTheControlGroupIsFound(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		self  string
		files map[string]string // :: path of a group → its memory.max
		want  int64
	}{
		"a container":              {"0::/\n", map[string]string{"": "268435456\n"}, 268435456},
		"a service":                {"0::/slice/a\n", map[string]string{"slice/a": "1000\n"}, 1000},
		"the lowest of several":    {"0::/a/b\n", map[string]string{"a": "1000\n", "a/b": "2000\n"}, 1000},
		"of the whole hierarchy":   {"0::/a/b\n", map[string]string{"": "1000\n", "a/b": "max\n"}, 1000},
		"no limit":                 {"0::/\n", map[string]string{"": "max\n"}, 0},
		"no file":                  {"0::/a\n", nil, 0},
		"of another version":       {"4:memory:/a\n", map[string]string{"a": "1000\n"}, 0},
		"of two versions":          {"4:memory:/b\n0::/a\n", map[string]string{"a": "1000\n", "b": "10\n"}, 1000},
		"no list of control group": {"", nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			self := filepath.Join(root, "self")
			if test.self != "" {
				overwrite(t, self, test.self)
			}
			for group, text := range test.files {
				if err := os.MkdirAll(filepath.Join(root, group), 0o700); err != nil {
					t.Fatal(err)
				}
				overwrite(t, filepath.Join(root, group, "memory.max"), text)
			}
			if got := groupMemory(root, self); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}
