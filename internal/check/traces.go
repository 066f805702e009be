package check

import "github.com/cloakroom-bff/cloakroom/internal/tracing"

// checkTraces reads the environment variables of OpenTelemetry. A mistake in
// them ends the start, as one in the configuration does.
func checkTraces(getenv func(string) string) []Finding {
	var findings []Finding
	for _, err := range tracing.Mistakes(getenv) {
		findings = append(findings, failure("tracing", sentence(err.Error()),
			"Correct or unset the variable. docs/operations.md lists the variables of OpenTelemetry that are used."))
	}
	return findings
}
