package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// traceObserver counts what the rules made of a packet: first before they see
// it, then behind conntrack (-200). It drops what it has counted, so that no
// packet of a row causes another. The fence, which no rule of ours touches,
// follows each packet: once it is counted, what went before it is through.
const traceObserver = `table inet observer {
	counter arrived { }
	counter untracked { }
	counter tracked { }
	counter fence { }
	chain before {
		udp dport 9 return
		meta l4proto { tcp, udp } counter name arrived
	}
	chain after {
		udp dport 9 counter name fence drop
		meta l4proto { tcp, udp } ct state untracked counter name untracked drop
		meta l4proto { tcp, udp } counter name tracked drop
	}
	chain prerouting-before { type filter hook prerouting priority -310; goto before; }
	chain output-before { type filter hook output priority -310; goto before; }
	chain prerouting-after { type filter hook prerouting priority -150; goto after; }
	chain output-after { type filter hook output priority -150; goto after; }
}
`

// traceNode is a network namespace in which packets are sent past the rules.
type traceNode struct {
	cfg    Config
	links  map[string]*net.Interface
	conn   *nftables.Conn
	frames int // a packet socket: closing one takes the kernel long
}

// newTraceNode makes devices on which packets can arrive: each is a veth whose
// other end has its name and a p, in the same namespace.
func newTraceNode(t *testing.T) *traceNode {
	t.Helper()
	testns.Program(t, "nft")
	n := &traceNode{cfg: Config{NetNS: int(testns.Enter(t))}, links: map[string]*net.Interface{}}
	for _, name := range []string{"pod0", "uplink", "uplink2"} {
		testns.Run(t, "ip", "link", "add", name, "type", "veth", "peer", "name", name+"p")
		testns.Run(t, "ip", "link", "set", name, "up")
		testns.Run(t, "ip", "link", "set", name+"p", "up")
	}
	for _, name := range []string{"vip", "local"} {
		testns.Run(t, "ip", "address", "add", traceAddr(iptables.IPv4, name).String()+"/32", "dev", "lo")
		testns.Run(t, "ip", "address", "add", traceAddr(iptables.IPv6, name).String()+"/128", "dev", "lo", "nodad")
	}
	// What leaves for anybody else leaves to the pods.
	testns.Run(t, "ip", "route", "add", "default", "dev", "pod0")
	testns.Run(t, "ip", "-6", "route", "add", "default", "dev", "pod0")
	testns.Run(t, "nft", "-f", tempFile(t, traceObserver))
	for _, name := range []string{"lo", "pod0", "uplink", "uplink2", "pod0p", "uplinkp", "uplink2p"} {
		link, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		n.links[name] = link
	}
	var err error
	if n.conn, err = nftables.New(nftables.WithNetNSFd(n.cfg.NetNS), nftables.AsLasting()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.conn.CloseLasting() })
	if n.frames, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(n.frames) })
	return n
}

// kernelTrace lets the kernel take part in the table.
type kernelTrace struct {
	*Backend
	node *traceNode
}

func (n *traceNode) newBackend(t *testing.T) kernelTrace {
	t.Helper()
	b, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return kernelTrace{b, n}
}

func (b kernelTrace) send(t *testing.T, h iptables.Hook, p Packet) string {
	t.Helper()
	before := b.node.counted(t)
	b.node.inject(t, h, p)
	fence := p
	fence.Proto = iptables.UDP
	fence.Src, fence.Dst = traceAddrPort(iptables.FamilyOf(p.Dst.Addr()), "other:9"), traceAddrPort(iptables.FamilyOf(p.Dst.Addr()), "other:9")
	if h == iptables.Output && p.Device == "lo" {
		fence.Dst = traceAddrPort(iptables.FamilyOf(p.Dst.Addr()), "vip:9")
	}
	b.node.inject(t, h, fence)
	await(t, "the fence behind the packet is counted", func() bool {
		return b.node.counted(t)["fence"] > before["fence"]
	})
	after := b.node.counted(t)
	if n := after["arrived"] - before["arrived"]; n != 1 {
		t.Fatalf("%s: %d packets came to hook %s", p, n, h)
	}
	switch {
	case after["untracked"] > before["untracked"]:
		return "untracked"
	case after["tracked"] > before["tracked"]:
		return "tracked"
	}
	return "dropped"
}

// grain is some ticks of the kernel's clock, by which it times elements.
func (kernelTrace) grain() time.Duration { return 30 * time.Millisecond }

func (b kernelTrace) expiries(t *testing.T) map[traceElement]expiry {
	t.Helper()
	out := map[traceElement]expiry{}
	if !b.installed() {
		return out
	}
	for _, k := range setKinds {
		for _, f := range k.families() {
			if !k.dynamic {
				continue
			}
			start := time.Now()
			elements, err := b.node.conn.GetSetElements(b.rs.set(k, f))
			if err != nil {
				t.Fatal(err)
			}
			end := time.Now()
			for _, e := range elements {
				if e.Expires > 0 {
					out[traceElement{k.name, string(e.Key)}] = expiry{start.Add(e.Expires), end.Add(e.Expires)}
				}
			}
		}
	}
	return out
}

// counted reads the observer's counters.
func (n *traceNode) counted(t *testing.T) map[string]uint64 {
	t.Helper()
	objs, err := n.conn.GetNamedObjects(&nftables.Table{Name: "observer", Family: nftables.TableFamilyINet})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint64{}
	for _, o := range objs {
		if named, ok := o.(*nftables.NamedObj); ok {
			if c, ok := named.Obj.(*expr.Counter); ok {
				out[named.Name] = c.Packets
			}
		}
	}
	return out
}

// inject makes a packet pass a hook: in prerouting it comes in over the device
// as a frame, whatever it says of itself; through output it is sent from a raw
// socket, and the routes must lead to the device.
func (n *traceNode) inject(t *testing.T, h iptables.Hook, p Packet) {
	t.Helper()
	var err error
	if h == iptables.Prerouting {
		err = n.arrive(p)
	} else {
		err = leave(p)
	}
	if err != nil {
		t.Fatalf("send %s: %v", p, err)
	}
}

func (n *traceNode) arrive(p Packet) error {
	near, far := n.links[p.Device], n.links[p.Device+"p"]
	if p.Device == "lo" {
		far = near
	}
	ethertype := uint16(unix.ETH_P_IP)
	if p.Dst.Addr().Is6() {
		ethertype = unix.ETH_P_IPV6
	}
	inNetworkOrder := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, ethertype))
	to := &unix.SockaddrLinklayer{Protocol: inNetworkOrder, Ifindex: far.Index, Halen: 6}
	copy(to.Addr[:], near.HardwareAddr)
	return unix.Sendto(n.frames, wire(p), 0, to)
}

func leave(p Packet) error {
	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(p.Dst.Addr().AsSlice()[:4])})
	if p.Dst.Addr().Is6() {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: p.Dst.Addr().As16()}
	}
	// With IPPROTO_RAW the packet brings its own header (raw(7)).
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	err = unix.Sendto(fd, wire(p), 0, to)
	if errors.Is(err, unix.EPERM) {
		err = nil // the observer, or a rule, dropped it
	}
	return errors.Join(err, unix.Close(fd))
}

// wire encodes a packet with an empty payload.
func wire(p Packet) []byte {
	const udpLen, tcpLen = 8, 20
	segment := make([]byte, udpLen)
	sum := 6
	if p.Proto == iptables.TCP {
		segment, sum = make([]byte, tcpLen), 16
		segment[12] = tcpLen / 4 << 4
		segment[13] = tcpFlags{p.SYN, p.ACK}.bits()
		binary.BigEndian.PutUint16(segment[14:], 65535) // window
	} else {
		binary.BigEndian.PutUint16(segment[4:], udpLen)
	}
	binary.BigEndian.PutUint16(segment[0:], p.Src.Port())
	binary.BigEndian.PutUint16(segment[2:], p.Dst.Port())
	pseudo := slices.Concat(p.Src.Addr().AsSlice(), p.Dst.Addr().AsSlice(), []byte{0, byte(p.Proto), 0, byte(len(segment))})
	binary.BigEndian.PutUint16(segment[sum:], internetChecksum(append(pseudo, segment...)))

	const hops = 64
	if p.Dst.Addr().Is6() {
		header := make([]byte, 8, 40)
		header[0] = 6 << 4
		binary.BigEndian.PutUint16(header[4:], uint16(len(segment)))
		header[6], header[7] = byte(p.Proto), hops
		return slices.Concat(header, p.Src.Addr().AsSlice(), p.Dst.Addr().AsSlice(), segment)
	}
	header := make([]byte, 12, 20)
	header[0] = 4<<4 | 5
	binary.BigEndian.PutUint16(header[2:], uint16(20+len(segment)))
	header[8], header[9] = hops, byte(p.Proto)
	header = slices.Concat(header, p.Src.Addr().AsSlice(), p.Dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(header[10:], internetChecksum(header))
	return append(header, segment...)
}

// internetChecksum is that of RFC 1071.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func TestKernelTraces(t *testing.T) {
	node := newTraceNode(t)
	for _, f := range families {
		for _, tc := range traceTable {
			b := node.newBackend(t)
			got := traceRow(t, f, tc, b, nil)
			for _, d := range differing(tc, got) {
				t.Errorf("%s, %s: %s", f, tc.name, d)
			}
			if err := b.Remove(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The kernel without a rule goes wrong where the twin without it does: the
// table bites there too.
func TestKernelWithoutARule(t *testing.T) {
	node := newTraceNode(t)
	seen := map[string]bool{}
	for _, id := range allRules() {
		if seen[id.text()] {
			continue // with and without a lease
		}
		seen[id.text()] = true
		f, tc, want := id.biting(t)
		if want == nil {
			continue // TestEveryRuleHasARow fails
		}
		b := node.newBackend(t)
		got := traceRow(t, f, tc, b, func() { b.takeAway(t, id) })
		if !slices.Equal(want, got) {
			t.Errorf("without %s\n%s, %s: the twin gives\n%q\nand the kernel\n%q", id, f, tc.name, want, got)
		}
		if err := b.Remove(); err != nil {
			t.Fatal(err)
		}
	}
}

// takeAway deletes a rule of the installed table.
func (b kernelTrace) takeAway(t *testing.T, id ruleID) {
	t.Helper()
	chain := &nftables.Chain{Table: b.rs.table, Name: id.chain}
	rules, err := b.node.conn.GetRules(b.rs.table, chain)
	if err != nil {
		t.Fatal(err)
	}
	err = b.change(fmt.Sprintf("take away a rule of chain %s", id.chain), func(c *nftables.Conn) error {
		return c.DelRule(&nftables.Rule{Table: b.rs.table, Chain: chain, Handle: rules[id.index].Handle})
	})
	if err != nil {
		t.Fatal(err)
	}
}
