package backends

import (
	"errors"
	"slices"

	"github.com/trackless-dns/trackless/internal/sockets"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/binaries"
	"github.com/trackless-dns/trackless/iptables/nftables"
)

// Claims returns who on this node asks for which addresses, this process left out:
// instances with either backend, and other DNS servers that listen at just one
// address, as node-cache does beside which we end.
func Claims() (iptables.Claims, error) {
	instances, err := nftables.Instances(nftables.Config{})
	var unsupported *iptables.UnsupportedError
	if errors.As(err, &unsupported) {
		err = nil
	}
	chains, chainsErr := binaries.Instances()
	others := slices.DeleteFunc(append(instances, chains...), func(i iptables.Instance) bool { return i.Owner.IsSelf() })
	servers, serversErr := sockets.OtherListeners("/proc/thread-self")
	return iptables.NewClaims(others, servers), errors.Join(err, chainsErr, serversErr)
}
