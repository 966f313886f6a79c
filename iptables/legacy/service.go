package legacy

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
)

// IsService reports whether kube-proxy's rules rewrite packets to the address:
// in iptables mode with the legacy binaries it stands in a rule of the chain
// KUBE-SERVICES of the table nat.
//
// The table has many times the rules of that chain. Prerouting leads to it, so that
// it is found without reading what lies between; where prerouting does not, the
// table is read up to it.
func IsService(cfg Config, a netip.Addr) (is bool, err error) {
	_, err = read(cfg, iptables.FamilyOf(a), "nat", lookForService(a, &is))
	return is && err == nil, err
}

func lookForService(a netip.Addr, is *bool) func(header, entriesFrom) error {
	headSize := layoutOf(iptables.FamilyOf(a)).headSize()
	return func(h header, from entriesFrom) error {
		offsets, err := h.jumpsOf(hookPrerouting, from)
		if err != nil {
			return err
		}
		for _, to := range offsets {
			var there bool
			if *is, there, err = destines(from(max(to-headSize, 0)), a, true); there || err != nil {
				return err
			}
		}
		*is, _, err = destines(from(0), a, false)
		return err
	}
}

const (
	hookPrerouting = 0 // NF_INET_PRE_ROUTING
	kubeServices   = "KUBE-SERVICES"
)

// jumpsOf are the offsets to which the rules of a base chain lead, each once.
func (h header) jumpsOf(hook int, from entriesFrom) (offsets []int, err error) {
	if h.validHooks&(1<<hook) == 0 {
		return nil, nil
	}
	for e, err := range from(int(h.hookEntry[hook])) {
		if err != nil {
			return nil, err
		}
		if to := e.jump(); to >= 0 && !slices.Contains(offsets, to) {
			offsets = append(offsets, to)
		}
		if e.at >= int(h.underflow[hook]) {
			break
		}
	}
	return offsets, nil
}

// headSize is the size of the entry before the first rule of a user's chain: it has
// no match, and its target a name of 30 bytes (struct xt_error_target).
func (l layout) headSize() int { return l.size + extensionHeader + 32 }

// destines reports whether a rule of the chain KUBE-SERVICES is for the address, and
// whether there is that chain among the entries; with first, at their beginning.
func destines(entries iter.Seq2[entry, error], a netip.Addr, first bool) (is, there bool, err error) {
	for e, err := range entries {
		if err != nil {
			return false, there, err
		}
		head, err := e.head()
		switch {
		case err != nil:
			return false, there, err
		case there && head != "":
			return false, there, nil
		case head != "":
			there = head == kubeServices
		case there && e.header(e.b).Destination.IsAddr(a):
			return true, there, nil
		}
		if first && !there {
			return false, false, nil
		}
	}
	return false, there, nil
}
