//go:build privileged

package failover

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	backend "github.com/trackless-dns/trackless/iptables/nftables"
	"github.com/trackless-dns/trackless/iptables/owner"
)

func failoverNS(t *testing.T) Config {
	t.Helper()
	return Config{NetNS: int(testns.Enter(t))}
}

func listedFailover(t *testing.T) string {
	t.Helper()
	out := testns.Run(t, "nft", "list", "table", "inet", owner.FailoverTable)
	return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(out, "packets 0 bytes 0")
}

// generation is the generation of the ruleset, which every transaction raises.
func generation(t *testing.T, cfg Config) uint32 {
	t.Helper()
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	replies, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: nfnl.MessageType(unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   nfnl.Header(nftables.TableFamilyUnspecified, 0),
	})
	if err != nil || len(replies) != 1 {
		t.Fatalf("read the generation: %d replies, %v", len(replies), err)
	}
	ad, err := netlink.NewAttributeDecoder(replies[0].Data[4:])
	if err != nil {
		t.Fatal(err)
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		if ad.Type() == unix.NFTA_GEN_ID {
			return ad.Uint32()
		}
	}
	t.Fatal("the kernel named no generation")
	return 0
}

var failoverCases = []struct {
	name    string
	pairs   []Pair
	outside Outside
}{
	{"IPv4", []Pair{pair4}, Outside{}},
	{"IPv6", []Pair{pair6}, Outside{}},
	{"both families", []Pair{pair4, pair6}, Outside{}},
	{"several ports", []Pair{pair("169.254.20.10", "10.96.0.10", 53, 5353)}, Outside{}},
	{"two addresses of one Service", []Pair{pair4, pair("169.254.20.11", "10.96.0.10")}, Outside{}},
	{"two Services by port", []Pair{pair("169.254.20.10", "10.96.0.10", 53), pair("169.254.20.10", "10.96.0.99", 54)}, Outside{}},
	{"uplinks", []Pair{pair4, pair6}, Outside{Uplinks: []string{"eth1", "eth0", "eth1"}}},
	{"uplinks with sources", []Pair{pair4, pair6}, Outside{Uplinks: []string{"br0"}, Sources: prefixes(
		"10.244.0.0/16", "10.8.0.0/13", "192.0.2.7/32", "fd00:244::/32", "fd00:8::/45", "2001:db8::1/128")}},
	{"a whole family", []Pair{pair4, pair6}, Outside{Uplinks: []string{"br0"}, Sources: prefixes("0.0.0.0/0")}},
}

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func TestPrintFailoverIsWhatTheKernelHolds(t *testing.T) {
	for _, tc := range failoverCases {
		t.Run(tc.name, func(t *testing.T) {
			cfg := failoverNS(t)
			if err := Install(cfg, tc.pairs, tc.outside); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Print(tc.pairs, tc.outside), listedFailover(t)); diff != "" {
				t.Errorf("printed and kernel differ (-printed +kernel):\n%s", diff)
			}
		})
	}
}

// TestNFTTakesThePrintedTable: we cannot tell the table that nft makes of the printed text
// from our own. So the text is complete, and the comparison finds no false differences.
func TestNFTTakesThePrintedTable(t *testing.T) {
	for _, tc := range failoverCases {
		t.Run(tc.name, func(t *testing.T) {
			cfg := failoverNS(t)
			testns.Run(t, "nft", "-f", tempFile(t, Print(tc.pairs, tc.outside)))
			got, err := Read(cfg)
			if err != nil {
				t.Fatal(err)
			}
			want, err := normalizeFailover(tc.pairs)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got.Pairs, sameAddrs); diff != "" || !got.Intact {
				t.Errorf("Intact = %t, pairs (-want +got):\n%s", got.Intact, diff)
			}
			if want := tc.outside.normalize(); !reflect.DeepEqual(got.Outside, want) {
				t.Errorf("outside is %v, want %v", got.Outside, want)
			}
		})
	}
}

func tempFile(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ruleset")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestInstallFailoverAgainChangesNothing(t *testing.T) {
	for _, tc := range failoverCases {
		t.Run(tc.name, func(t *testing.T) {
			cfg := failoverNS(t)
			if err := Install(cfg, tc.pairs, tc.outside); err != nil {
				t.Fatal(err)
			}
			before := generation(t, cfg)
			shuffled := []Pair{}
			for _, p := range tc.pairs {
				shuffled = append([]Pair{p}, shuffled...)
			}
			if err := Install(cfg, shuffled, tc.outside); err != nil {
				t.Fatal(err)
			}
			if after := generation(t, cfg); after != before {
				t.Errorf("generation went from %d to %d", before, after)
			}
		})
	}
}

func TestInstallFailoverRepairs(t *testing.T) {
	for _, tc := range []struct {
		name string
		nft  string // what someone else does; %s in it is the table
	}{
		{"a chain is flushed", "flush chain %s postrouting"},
		{"a chain is added", "add chain %s foreign"},
		{"a chain is set to drop", "add chain %s input { policy drop; }"},
		{"a rule is added", "add rule %s prerouting drop"},
		{"a rule is inserted", "insert rule %s output drop"},
		{"a rule is replaced by one that differs in a value", "flush chain %[1]s masquerading; add rule %[1]s masquerading ct original zone 53 ip saddr 169.254.20.11 masquerade fully-random"},
		{"a rule is replaced by one without a flag", "flush chain %[1]s masquerading; add rule %[1]s masquerading ct original zone 53 ip saddr 169.254.20.10 masquerade"},
		{"a rule gets one more expression", "flush chain %[1]s masquerading; add rule %[1]s masquerading ct original zone 53 ip saddr 169.254.20.10 counter masquerade fully-random"},
		{"the rule about an uplink is deleted", "flush chain %s prerouting"},
		{"clients outside are accepted", "insert rule %s outside accept"},
		{"a set is added", "add set %s foreign { type ipv4_addr; }"},
		{"a counter is added", "add counter %s foreign"},
		{"the table is dormant", "add table %s { flags dormant; }"},
		{"the table is deleted", "delete table %s"},
		{"the ruleset is flushed", "flush ruleset"},
		{"another version's table", "delete table %[1]s; add table %[1]s { comment \"trackless failover 0\"; }"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := failoverNS(t)
			pairs, outside := []Pair{pair4}, Outside{Uplinks: []string{"eth0"}}
			if err := Install(cfg, pairs, outside); err != nil {
				t.Fatal(err)
			}
			command := strings.NewReplacer("%s", "inet "+owner.FailoverTable, "%[1]s", "inet "+owner.FailoverTable).Replace(tc.nft)
			testns.Run(t, "nft", command)
			if got, err := Read(cfg); err != nil || got.Intact {
				t.Fatalf("after %q: Intact = %t, %v", command, got.Intact, err)
			}
			if err := Install(cfg, pairs, outside); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Print(pairs, outside), listedFailover(t)); diff != "" {
				t.Errorf("not repaired (-want +kernel):\n%s", diff)
			}
		})
	}
}

func TestInstallFailoverReplacesThePairs(t *testing.T) {
	cfg := failoverNS(t)
	for i, pairs := range [][]Pair{
		{pair4, pair6},
		{pair("169.254.20.10", "10.96.0.11")},
		{pair6},
	} {
		outside := Outside{Uplinks: []string{"eth0", "eth1", "eth2"}[i:]}
		if err := Install(cfg, pairs, outside); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Print(pairs, outside), listedFailover(t)); diff != "" {
			t.Errorf("not replaced (-want +kernel):\n%s", diff)
		}
	}
	if err := Install(cfg, nil, Outside{}); err != nil {
		t.Fatal(err)
	}
	if out := testns.Run(t, "nft", "list", "ruleset"); out != "" {
		t.Errorf("no pairs must leave no table:\n%s", out)
	}
}

func TestFailoverOutlivesItsMakerAndIsRemoved(t *testing.T) {
	cfg := failoverNS(t)
	if got, err := Read(cfg); err != nil || got.Present {
		t.Fatalf("Read without a table = %+v, %v", got, err)
	}
	if err := Remove(cfg); err != nil {
		t.Errorf("remove without a table: %v", err)
	}
	if err := Install(cfg, []Pair{pair4}, Outside{}); err != nil {
		t.Fatal(err)
	}
	// The socket that made it is closed now.
	if got, err := Read(cfg); err != nil || !got.Present || !got.Intact {
		t.Fatalf("Read = %+v, %v", got, err)
	}
	if err := Remove(cfg); err != nil {
		t.Fatal(err)
	}
	if out := testns.Run(t, "nft", "list", "ruleset"); out != "" {
		t.Errorf("left behind:\n%s", out)
	}
}

func TestFailoverTableIsNoInstance(t *testing.T) {
	cfg := failoverNS(t)
	b, err := backend.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Remove(); err != nil {
			t.Error(err)
		}
	})
	if err := Install(cfg, []Pair{pair4}, Outside{}); err != nil {
		t.Fatal(err)
	}
	if err := b.Install(iptables.Rules{Plan: iptables.Plan{Listen: []iptables.Endpoint{
		{Addr: pair4.Listen, Port: 53, Proto: iptables.UDP}, {Addr: pair4.Listen, Port: 53, Proto: iptables.TCP},
	}}.Normalize()}); err != nil {
		t.Fatal(err)
	}
	if all, err := backend.Instances(cfg); len(all) != 1 || err != nil {
		t.Errorf("Instances() = %v, %v; want our own alone", all, err)
	}
	if got, err := Read(cfg); err != nil || !got.Intact {
		t.Errorf("the start of an instance changed the failover table: %+v, %v", got, err)
	}
}

func TestFailoverLeavesAForeignOwnersTable(t *testing.T) {
	cfg := failoverNS(t)
	conn, err := nfnl.Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var tx nfnl.Transaction
	if err := tx.NewTable(owner.FailoverTable, owner.Self(2), nfnl.TableFlagOwner, nil); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(conn); err != nil {
		t.Fatal(err)
	}
	err = Install(cfg, []Pair{pair4}, Outside{})
	if !errors.Is(err, iptables.ErrPermission) || !strings.Contains(err.Error(), owner.FailoverTable) {
		t.Errorf("install over an owned table: %v", err)
	}
	if err := Remove(cfg); !errors.Is(err, iptables.ErrPermission) {
		t.Errorf("remove an owned table: %v", err)
	}
}
