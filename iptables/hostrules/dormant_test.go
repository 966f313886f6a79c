//go:build privileged

package hostrules

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

const dropFilter = `table ip filter { FLAGS
	chain INPUT { type filter hook input priority 0; policy drop; ct state established accept; }
}`

// A dormant table drops nothing. The generation changes when it is no longer dormant.
func TestDroppingChainsOfADormantTable(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	endpoints := []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}
	testns.Feed(t, strings.Replace(dropFilter, "FLAGS", "flags dormant;", 1), "nft", "-f", "-")
	if got := droppingLines(t, cfg, endpoints, podDevices); len(got) > 0 {
		t.Errorf("a dormant table: %v", got)
	}
	before, err := Generation(cfg)
	if err != nil {
		t.Fatal(err)
	}
	testns.Run(t, "nft", "add", "table", "ip", "filter", "{ ; }") // without the flag
	if got := droppingLines(t, cfg, endpoints, podDevices); len(got) == 0 {
		t.Error("the table is no longer dormant, and nothing drops")
	}
	if after, err := Generation(cfg); err != nil || after == before {
		t.Errorf("generation %d, before %d, %v", after, before, err)
	}
}

// We cannot add rules to a table that a process owns.
func TestObstacleOfAnOwnedTable(t *testing.T) {
	cfg := Config{NetNS: int(testns.Enter(t))}
	table := &nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}
	policy := nftables.ChainPolicyDrop
	tx, err := nfnl.Encode(func(c *nfnl.Encoder) error {
		c.AddChain(&nftables.Chain{
			Table: table, Name: "INPUT", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
			Priority: nftables.ChainPriorityFilter, Policy: &policy,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Prepend(unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl, []netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte("filter\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, nfnl.TableFlagOwner)},
	}); err != nil {
		t.Fatal(err)
	}
	// The table is in the family of its chain.
	tx.Messages[0].Data[0] = byte(table.Family)
	other, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: cfg.NetNS})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if err := tx.Commit(other); err != nil {
		t.Fatal(err)
	}
	found, err := DroppingChains(cfg, []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}, podDevices)
	if err != nil || len(found) == 0 {
		t.Fatalf("%v, %v", found, err)
	}
	for _, o := range found {
		if !o.Owned || o.Amendable() {
			t.Errorf("%s: owned %t, amendable %t", o, o.Owned, o.Amendable())
		}
	}
}
