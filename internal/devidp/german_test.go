package devidp_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
)

func TestMessagesHaveGerman(t *testing.T) {
	t.Parallel()
	call := regexp.MustCompile(`(?s)showMessage\([^"]*?"([^"]+)",\s*"([^"]+)"`)
	found := 0
	for _, file := range []string{"authorize.go", "logout.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllSubmatch(source, -1) {
			for _, text := range m[1:] {
				found++
				if devidp.German[string(text)] == "" {
					t.Errorf("no German for %q", text)
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("got %d texts of messages, want at least 20", found)
	}
}
