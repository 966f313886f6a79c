//go:build privileged

package nfnl_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/hostrules"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/nftables"
)

// withoutNFTables answers as a kernel without nf_tables does: a request is invalid
// (nfnetlink_rcv_msg), and a batch is not supported (nfnetlink_rcv_batch).
func withoutNFTables() nfnl.Config {
	return nfnl.Config{Socket: func() (*netlink.Conn, error) {
		return nltest.Dial(func(req []netlink.Message) ([]netlink.Message, error) {
			if len(req) == 0 {
				return nil, nil
			}
			errno := unix.EINVAL
			if req[0].Header.Type == unix.NFNL_MSG_BATCH_BEGIN {
				errno = unix.EOPNOTSUPP
			}
			req[0].Header.Flags = 0 // flags of a request have other meanings in an answer
			return nltest.Error(int(errno), req[:1])
		}), nil
	}}
}

// A kernel without nf_tables has no tables, and the rules of iptables-legacy are still
// found.
func TestKernelWithoutNFTables(t *testing.T) {
	testns.Enter(t)
	testns.Feed(t, `*filter
:INPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p udp -m udp --dport 53 -m comment --comment "trackless 1: untracked DNS" -d 10.96.0.11/32 -m conntrack --ctstate UNTRACKED -j ACCEPT
COMMIT
*raw
-A PREROUTING -d 10.96.0.10/32 -p udp -m udp --dport 53 -j CT --notrack
COMMIT
`, "iptables-legacy-restore", "--noflush")
	cfg := withoutNFTables()
	endpoints := []iptables.Endpoint{{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: iptables.UDP}}
	isUnsupported := func(what string, err error) {
		t.Helper()
		var unsupported *iptables.UnsupportedError
		if !errors.As(err, &unsupported) {
			t.Errorf("%s: %v, want that it is not supported", what, err)
		}
	}
	_, err := nftables.New(cfg)
	isUnsupported("a backend", err)
	_, err = nftables.Instances(cfg)
	isUnsupported("instances", err)
	isUnsupported("failover", failover.Install(cfg, []failover.Pair{{
		Listen: netip.MustParseAddr("169.254.20.10"), Service: netip.MustParseAddr("10.96.0.10"), Ports: []uint16{53},
	}}, failover.Outside{}))
	if f, err := failover.Read(cfg); err != nil || f.Present {
		t.Errorf("the failover table: %+v, %v", f, err)
	}
	if removed, err := nftables.RemoveStale(cfg); err != nil || len(removed) > 0 {
		t.Errorf("stale tables: %v, %v", removed, err)
	}
	if _, err := hostrules.Generation(cfg); err != nil {
		t.Errorf("generation: %v", err)
	}
	if got, err := hostrules.DroppingChains(cfg, endpoints, []hostrules.Device{{Name: "veth0", Index: 7}}); err != nil || len(got) == 0 || !got[0].Legacy {
		t.Errorf("dropping: %v, %v", got, err)
	}
	if got, err := hostrules.ConflictingRules(cfg, endpoints); err != nil || len(got) != 1 || !got[0].Legacy {
		t.Errorf("conflicting rules: %v, %v", got, err)
	}
	if got, err := hostrules.AcceptRules(cfg); err != nil || len(got) != 1 || !got[0].Legacy {
		t.Errorf("accept rules: %v, %v", got, err)
	}
}
