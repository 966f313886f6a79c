//go:build privileged

package firewall

import (
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/trackless-dns/trackless/fastpath/kernel"
	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables/owner"
)

func TestExplain(t *testing.T) {
	testns.Enter(t)
	testns.Program(t, "iptables-nft-restore")
	a := netip.MustParseAddr("10.96.0.10")
	if found := conflicts(a); len(found) > 0 {
		t.Fatalf("conflicts without rules: %q", found)
	}
	cmd := exec.Command("iptables-nft-restore")
	cmd.Stdin = strings.NewReader(`*raw
-A PREROUTING -p udp --dport 53 -j ACCEPT
-A OUTPUT -d 10.96.0.10 -p tcp --dport 53 -j CT --notrack
-A OUTPUT -s 10.96.0.10 -m mark --mark 1 -j DROP
COMMIT
`)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found := conflicts(a)
	testgolden.Compare(t, "conflicts.txt", strings.Join(found, "\n")+"\n")
	if got := Explain(a); !strings.Contains(got, strings.Join(found, "; ")) {
		t.Errorf("%q lacks the conflicts", got)
	}
}

// A program of an instance is no reason for which our rules have no effect.
func TestExplainLeavesOutInstances(t *testing.T) {
	testns.Enter(t)
	testns.Run(t, "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
	device, err := net.InterfaceByName("veth0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := kernel.Load(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	attached, err := link.AttachTCX(link.TCXOptions{Interface: device.Index, Program: p.BPF(), Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer attached.Close()
	a := netip.MustParseAddr("10.96.0.10")
	named := func() bool { return strings.Contains(strings.Join(programs(a), "; "), "veth0") }
	if !named() {
		t.Error("a program of somebody else is not named")
	}
	info, err := p.BPF().Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	mark, err := owner.MarkProgram(uint32(id))
	if err != nil {
		t.Fatal(err)
	}
	defer mark.Close()
	if named() {
		t.Error("a program of an instance is named")
	}
}
