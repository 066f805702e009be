package check

import (
	"path/filepath"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// checkFrontend checks the app's page against its Content-Security-Policy.
func checkFrontend(cfg *config.Config) []Finding {
	handler, err := cfg.NewFrontend(discard)
	if err != nil || handler == nil || cfg.Frontend.URL != "" {
		return nil // a mistake in the file, which was found, or no frontend
	}
	violations, err := handler.Violations()
	if err != nil {
		return nil
	}
	var findings []Finding
	for _, v := range violations {
		findings = append(findings, warning("frontend.dir", sentence(
			filepath.Join(cfg.Frontend.Dir, "index.html")+": the Content-Security-Policy blocks "+v.Problem),
			sentence(capital(v.Advice))))
	}
	return findings
}
