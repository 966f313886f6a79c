package legacy

import (
	"iter"
	"net/netip"

	"github.com/trackless-dns/trackless/iptables"
)

// IsService reports whether kube-proxy's rules rewrite packets to the address:
// in iptables mode with the legacy binaries it stands in a rule of the chain
// KUBE-SERVICES of the table nat. Nothing is read behind that.
func IsService(cfg Config, a netip.Addr) (is bool, err error) {
	_, err = read(cfg, iptables.FamilyOf(a), "nat", func(_ header, entries iter.Seq2[entry, error]) error {
		inside := false
		for e, err := range entries {
			if err != nil {
				return err
			}
			head, err := e.head()
			switch {
			case err != nil:
				return err
			case head != "" && inside:
				return nil
			case head != "":
				inside = head == "KUBE-SERVICES"
			case inside && e.header(e.b).Destination.IsAddr(a):
				is = true
				return nil
			}
		}
		return nil
	})
	return is && err == nil, err
}
