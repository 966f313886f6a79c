package ruleset

import (
	"errors"
	"slices"

	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/backends"
)

// Claims returns which addresses others on this node use: other instances, with any
// backend, and other DNS servers that listen at a single address, such as node-cache.
func Claims() (iptables.Claims, error) {
	var others []iptables.Instance
	var errs []error
	for _, kind := range backends.All() {
		instances, err := kind.Instances()
		var unsupported *iptables.UnsupportedError
		if !errors.As(err, &unsupported) {
			errs = append(errs, err)
		}
		others = append(others, instances...)
	}
	others = slices.DeleteFunc(others, func(i iptables.Instance) bool { return i.Owner.IsSelf() })
	servers, err := sockets.OtherListeners("/proc/thread-self")
	return iptables.NewClaims(others, servers), errors.Join(append(errs, err)...)
}
