package main

import (
	"context"
	"runtime"

	"github.com/trackless-dns/trackless/cmd/trackless/node"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/measure"
	"github.com/trackless-dns/trackless/node/rules"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// nodeRules are those of the node on which we run.
var nodeRules = measure.Rules{Instances: instance.Kernel{}.Instances, Listeners: rules.Listeners}

// newSnapshotSource reads the node on which we run.
func newSnapshotSource() node.SnapshotSource {
	return node.SnapshotSource{
		Versions: snapshot.Versions{Trackless: version, CoreDNS: coreDNSVersion(), Go: runtime.Version()},
		Rules: func(ctx context.Context, s *snapshot.Snapshot, socket string) []*control.Client {
			return rules.FillSnapshot(ctx, rules.Kernel{}, s, socket)
		},
	}
}
