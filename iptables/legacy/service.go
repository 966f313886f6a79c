package legacy

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/trackless-dns/trackless/iptables"
)

// IsService reports whether kube-proxy's rules rewrite packets to the address. In
// iptables mode with the legacy binaries the address is in a rule of the chain
// KUBE-SERVICES of the table nat.
//
// That chain has only a small part of the rules. The jumps of prerouting lead to it
// without reading the rules in between. If none does, the table is read from its start.
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
			var found bool
			if *is, found, err = inKubeServices(from(max(to-headSize, 0)), a, true); found || err != nil {
				return err
			}
		}
		*is, _, err = inKubeServices(from(0), a, false)
		return err
	}
}

const (
	hookPrerouting = 0 // NF_INET_PRE_ROUTING
	kubeServices   = "KUBE-SERVICES"
)

// jumpsOf returns the offsets to which the rules of a base chain jump, each once.
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

// headSize is the size of the entry before the first rule of a user-defined chain. The
// entry has no match, and its target has a name of 30 bytes (struct xt_error_target).
func (l layout) headSize() int { return l.size + extensionHeader + 32 }

// inKubeServices reports whether a rule of the chain KUBE-SERVICES is for the address,
// and whether the chain was found among the entries. With first, it must be the first.
func inKubeServices(entries iter.Seq2[entry, error], a netip.Addr, first bool) (is, found bool, err error) {
	for e, err := range entries {
		if err != nil {
			return false, found, err
		}
		head, err := e.head()
		switch {
		case err != nil:
			return false, found, err
		case found && head != "":
			return false, found, nil
		case head != "":
			found = head == kubeServices
		case found && e.header(e.b).Destination.IsAddr(a):
			return true, found, nil
		}
		if first && !found {
			return false, false, nil
		}
	}
	return false, found, nil
}
