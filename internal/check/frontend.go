package check

import (
	"fmt"
	"path/filepath"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// maxFrontendFindings is the maximum number of findings for one app.
const maxFrontendFindings = 20

// Frontend returns a finding for each part of the app in frontend.dir that its
// Content-Security-Policy blocks, 20 at most. It reads the files of the app.
func Frontend(cfg *config.Config) []Finding {
	handler, err := cfg.NewFrontend(discard)
	if err != nil || handler == nil || cfg.Frontend.URL != "" {
		return nil // a mistake in the file, which was found, or no files
	}
	violations, err := handler.Violations()
	if err != nil {
		return nil
	}
	suffix := ""
	if cfg.Frontend.CSPReportOnly {
		suffix = ", once csp_report_only is removed"
	}
	var findings []Finding
	for i, v := range violations {
		if i == maxFrontendFindings {
			findings = append(findings, warning("frontend.dir",
				fmt.Sprintf("The Content-Security-Policy blocks %d more parts of the app.", len(violations)-i),
				"Run cloakroom csp "+cfg.Frontend.Dir+", which lists them all."))
			break
		}
		findings = append(findings, warning("frontend.dir",
			sentence(filepath.Join(cfg.Frontend.Dir, v.Place())+": "+v.Problem()+suffix),
			sentence(capital(v.Advice("frontend.csp")))))
	}
	return findings
}
