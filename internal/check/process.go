package check

import (
	"fmt"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/internal/descriptors"
)

// fewDescriptors is the number of file descriptors for connections below which
// there is a warning: with the reserve it is ulimit -n 4096.
const fewDescriptors = 4096 - 256

// checkDescriptors checks the limit of file descriptors. It is that of this
// process, which may differ from the broker's.
func checkDescriptors(cfg *config.Config) []Finding {
	const key = "server.limits.connections"
	const fix = "Raise the limit of the broker's process: ulimit -n 65536, or LimitNOFILE=65536 in its systemd unit."
	available, wanted := descriptors.ForConnections(), cfg.Server.Limits.Connections
	switch {
	case wanted > available:
		return []Finding{warning(key, fmt.Sprintf("%d connections are more than the file descriptors of this "+
			"process allow: %d.", wanted, available), fix+" Or lower "+key+".")}
	case wanted == 0 && available < fewDescriptors:
		return []Finding{warning(key, fmt.Sprintf("With the file descriptors of this process, %d connections of "+
			"clients and as many to upstreams are possible.", available/2), fix)}
	}
	return nil
}
