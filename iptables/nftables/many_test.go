package nftables

import (
	"net/netip"
	"testing"

	"github.com/google/nftables"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// elements counts what the kernel holds in a set.
func elements(t *testing.T, cfg Config, set *nftables.Set) int {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(cfg.NetNS))
	if err != nil {
		t.Fatal(err)
	}
	all, err := conn.GetSetElements(set)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// The kernel allocates a set's hash table for its whole size when it is made, 16 bytes
// for each element, and that once for each of more than a dozen sets.
func TestSetsReserveLittle(t *testing.T) {
	var room uint32
	for name, set := range newRuleset("trackless-1").sets {
		if set.Size > 1024 {
			t.Errorf("set %s is made with room for %d elements", name, set.Size)
		}
		room += set.Size
	}
	if room > 4096 {
		t.Errorf("all sets together are made with room for %d elements", room)
	}
}

// A netlink attribute has 16 bits for its length.
func TestEncodeRefusesWhatWraps(t *testing.T) {
	rs := newRulesetOf("trackless-test", upstreamKinds)
	var all []nftables.SetElement
	for i := range 3_000 {
		all = append(all, nftables.SetElement{Key: endpointKey(iptables.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), Port: 53, Proto: iptables.UDP})})
	}
	set := rs.set(upstreamSet, iptables.IPv4)
	if _, err := nfnl.Encode(func(c *nfnl.Encoder) error { return c.AddElements(set, all) }); err == nil {
		t.Error("one message for 3,000 elements is no error")
	}
	if _, err := nfnl.Encode(func(c *nfnl.Encoder) error { return addElements(c, set, all) }); err != nil {
		t.Error(err)
	}
}
