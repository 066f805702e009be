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
	const writable = "Name a file to which the user that runs the broker can write, or stdout."
	name := cfg.Log.Audit
	if name == "" || name == "stdout" {
		return nil
	}
	info, err := os.Stat(name)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return []Finding{failure(key, fmt.Sprintf("%s is not a regular file, so the broker does not start.",
			name), fix)}
	case err == nil:
		if err := checkWritableFile(name); err != nil {
			return []Finding{failure(key, sentence(err.Error()), writable)}
		}
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if _, err = os.Stat(filepath.Dir(name)); err == nil {
			if err := checkWritable(filepath.Dir(name)); err != nil {
				return []Finding{failure(key, sentence(err.Error()), writable)}
			}
			return nil
		}
	}
	return []Finding{failure(key, sentence(err.Error()), fix)}
}
