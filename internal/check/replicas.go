package check

import (
	"context"
	"fmt"
	"slices"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/replicas"
)

// checkReplicas compares this configuration with the replicas that run. They
// have records in the store.
func checkReplicas(ctx context.Context, cfg *config.Config, o Options) []Finding {
	store := openRedis(cfg)
	if store == nil {
		return nil
	}
	defer store.Close()
	describe := func() replicas.Description {
		return replicas.Description{Version: o.Version, Commit: o.Commit, App: cfg.App(), Keys: cfg.SessionKeys(),
			Settings: cfg.Settings()}
	}
	list, err := replicas.New(store, describe, discard).List(ctx)
	if err != nil || len(list) == 0 {
		return nil // checkStore finds why
	}
	var findings []Finding
	for _, other := range list[1:] {
		findings = append(findings, replicaFindings(list[0], other)...)
	}
	return findings
}

// replicaFindings returns the differences between this configuration and a
// replica.
func replicaFindings(self, other replicas.Replica) []Finding {
	if self.Origin != other.Origin && (self.Issuer != other.Issuer || self.ClientID != other.ClientID) {
		return []Finding{warning("store.prefix", fmt.Sprintf("Another app shares this Redis and its prefix: %s with "+
			"the client %q runs as %s.", other.Origin, other.ClientID, other.Replica),
			"Give each app a store.prefix of its own.")}
	}
	const fix = "Give all replicas the same configuration. During a rolling change, differences are normal."
	var findings []Finding
	for _, key := range other.Differs {
		switch key {
		case "session.keys":
			common := slices.ContainsFunc(self.KeyFingerprints, func(f string) bool {
				return slices.Contains(other.KeyFingerprints, f)
			})
			if !common {
				findings = append(findings, failure(key, fmt.Sprintf("The running replica %s has other session keys. "+
					"Neither opens the sessions of the other: users are signed out.", other.Replica),
					"Give all replicas the same session.keys."))
				continue
			}
			findings = append(findings, warning(key, fmt.Sprintf("The running replica %s has another set of session "+
				"keys.", other.Replica), fix))
		case "version":
			findings = append(findings, warning(key, fmt.Sprintf("The running replica %s is another version of "+
				"Cloakroom: %s, commit %s. This is %s, commit %s.", other.Replica, other.Version, other.Commit,
				self.Version, self.Commit), "Run the same version on all replicas."))
		case "configuration":
			for _, setting := range other.Settings {
				findings = append(findings, warning(setting,
					fmt.Sprintf("The running replica %s has another value of %s.", other.Replica, setting), fix))
			}
		default:
			findings = append(findings, failure(key,
				fmt.Sprintf("The running replica %s has another value of %s. Neither opens the sessions of the other.",
					other.Replica, key), fix))
		}
	}
	return findings
}
