// Package check finds mistakes in a configuration, and faults of what a broker
// depends on, before users do: it asks the provider, the store, the upstreams,
// the other replicas and the public URL.
//
// It changes nothing. It writes no session and ends none. Two traces
// remain elsewhere: the provider logs a refused token request or an
// authorization request, and the store has keys for a moment, which are
// deleted.
package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/config"
)

// limit is how long all checks together may take. Each step has a shorter limit
// of its own.
const limit = 12 * time.Second

// stepLimit is how long one exchange with a peer may take.
const stepLimit = 5 * time.Second

// Options selects what Run checks.
type Options struct {
	File    string // the configuration; empty: the environment alone
	Getenv  func(string) string
	Environ []string // names and values, as os.Environ returns them
	Offline bool     // read the file, and the files that it names, only

	Version, Commit string // of this program, to compare with those of replicas
}

// Run returns what it finds. The steps run side by side, and all together take
// at most 12 seconds.
func Run(ctx context.Context, o Options) []Finding {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cfg, findings := checkFile(o)
	if cfg == nil {
		return sorted(findings)
	}
	wrong := make(map[string]bool) // :: key with a mistake in the file
	for _, f := range findings {
		wrong[f.Key] = wrong[f.Key] || f.Severity == SeverityError
	}
	if wrong["server.prefix"] { // part of the URLs that are asked for
		wrong["server.public_url"] = true
	}
	steps := []func() []Finding{
		func() []Finding { return checkCertificates(cfg) },
		func() []Finding { return checkAudit(cfg) },
		func() []Finding { return checkDescriptors(cfg) },
		func() []Finding { return Frontend(cfg) },
		func() []Finding { return checkTraces(o.Getenv) },
	}
	if !o.Offline {
		steps = append(steps,
			func() []Finding { return checkProvider(ctx, cfg) },
			func() []Finding { return checkBearerIssuers(ctx, cfg) },
			func() []Finding { return checkStore(ctx, cfg) },
			func() []Finding { return checkReplicas(ctx, cfg, o) },
			func() []Finding { return checkUpstreams(ctx, cfg) },
			func() []Finding { return checkPublicURL(ctx, cfg) })
	}
	for _, f := range sideBySide(steps) {
		if !wrong[f.Key] { // else it may be a consequence
			findings = append(findings, f)
		}
	}
	return sorted(findings)
}

// sideBySide runs steps at the same time, and returns the findings of all.
func sideBySide(steps []func() []Finding) []Finding {
	found := make([][]Finding, len(steps))
	var group sync.WaitGroup
	for i, step := range steps {
		group.Go(func() { found[i] = step() }) // until the limit of the step
	}
	group.Wait()
	return slices.Concat(found...)
}

// discard is the logger of what is checked: findings tell what is wrong.
var discard = slog.New(slog.DiscardHandler)

// checkFile reads the configuration. It returns nil if the file is missing or
// not YAML.
func checkFile(o Options) (*config.Config, []Finding) {
	var findings []Finding
	for _, stray := range config.StrayVariables(o.Environ) {
		findings = append(findings, warning(stray.Key,
			fmt.Sprintf("The environment variable %s has no effect: no key has this name.", stray.Name),
			fmt.Sprintf("Rename it to %s, or remove it.", stray.Near)))
	}
	cfg, err := config.Load(o.File, o.Getenv)
	if cfg == nil {
		return nil, append(findings, mistakes(err, o)...)
	}
	findings = append(findings, checkModes(o)...)
	err = config.Merge(err, cfg.Validate(discard))
	findings = append(findings, mistakes(err, o)...)
	for _, w := range cfg.Warnings() {
		findings = append(findings, warning(w.Key, sentence(w.Err.Error()), fixOf(w)))
	}
	if cfg.Store.IsInMemory() {
		findings = append(findings, warning("store.url",
			"Sessions are in memory (memory:). A restart signs all users out, and replicas do not share them.",
			"Use redis: with several replicas, or file: with one. memory: is for development."))
	}
	return cfg, findings
}

// mistakes returns the findings for the mistakes in a configuration.
func mistakes(err error, o Options) []Finding {
	var all config.Errors
	if !errors.As(err, &all) {
		return nil
	}
	var findings []Finding
	for _, e := range all {
		problem := e.Err.Error()
		if line, ok := strings.CutPrefix(e.Source, o.File+":"); ok {
			problem = fmt.Sprintf("%s (line %s)", problem, line)
		} else if e.Source != "" && e.Source != o.File {
			problem = e.Source + ": " + problem
		}
		if e.Key == "" && o.File == "" {
			problem += " (No file was read. Use --config FILE.)"
		}
		findings = append(findings, failure(e.Key, sentence(problem), fixOf(e)))
	}
	return findings
}

// fixOf returns what to do about a mistake.
func fixOf(e *config.Error) string {
	if unknown, ok := errors.AsType[*config.UnknownKeyError](e); ok {
		if unknown.Near != "" {
			return fmt.Sprintf("Rename %s to %s.", e.Key, e.Key[:strings.LastIndexByte(e.Key, '.')+1]+unknown.Near)
		}
		return "Remove it. docs/configuration.md lists all keys."
	}
	if errors.Is(e, config.ErrRepeated) {
		return "Remove one of the two."
	}
	if e.Fix != "" {
		return sentence(capital(e.Fix))
	}
	if file, ok := errors.AsType[*fs.PathError](e); ok && e.Key != "" {
		switch {
		case errors.Is(file, fs.ErrNotExist):
			return fmt.Sprintf("Create %s, or correct %s.", file.Path, e.Key)
		case errors.Is(file, fs.ErrPermission):
			return fmt.Sprintf("Let the user that runs the broker read %s, or correct %s.", file.Path, e.Key)
		}
	}
	if e.Key == "" {
		return "Correct the file. configs/cloakroom.yaml is an example with all keys."
	}
	fix := "Correct " + e.Key + "."
	if e.Value == "" {
		fix = "Set " + e.Key + "."
	}
	for _, k := range config.Keys {
		if k.Name == withoutIndexes(e.Key) || k.Name+"[]" == withoutIndexes(e.Key) ||
			k.Name+"_file" == withoutIndexes(e.Key) {
			fix += " Meaning: " + strings.TrimPrefix(strings.ReplaceAll(k.Doc, "`", ""), "Required. ")
			if k.Default != "" {
				fix += " Default: " + k.Default + "."
			}
		}
	}
	return fix
}

// sentence returns a text with a full stop.
func sentence(text string) string {
	if strings.HasSuffix(text, ".") || strings.HasSuffix(text, "?") {
		return text
	}
	return text + "."
}
