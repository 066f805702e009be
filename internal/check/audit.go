package check

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// checkAudit checks that log.audit names a file that events can be appended to,
// or one that can be created.
func checkAudit(cfg *config.Config) []Finding {
	const key, fix = "log.audit", "Name a regular file in a folder that exists, or stdout."
	name := cfg.Log.Audit
	if name == "" || name == "stdout" {
		return nil
	}
	info, err := os.Stat(name)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return []Finding{failure(key, fmt.Sprintf("%s is not a regular file, so the broker does not start.",
			name), fix)}
	case errors.Is(err, fs.ErrNotExist):
		_, err = os.Stat(filepath.Dir(name))
	}
	if err != nil {
		return []Finding{failure(key, sentence(err.Error()), fix)}
	}
	return nil
}
