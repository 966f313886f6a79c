package tracetest

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
)

// observer counts packets before the rules, and by their verdict after conntrack (-200).
// It drops the packets that it has counted, so that no packet of a row causes another. A
// fence packet, which matches no rule of ours, follows each packet: when it is counted,
// the packet before it has passed.
const observer = `table inet observer {
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

// Node is a network namespace in which packets are sent through the rules.
type Node struct {
	NetNS int // file descriptor
	Links map[string]*net.Interface
	Conn  *nftables.Conn

	frames int // a packet socket, kept open: the kernel closes one slowly
}

// NewNode makes devices on which packets can arrive: each is a veth, and its other end in
// the same namespace has its name and a p.
func NewNode(t *testing.T) *Node {
	t.Helper()
	testns.Program(t, "nft")
	n := &Node{NetNS: int(testns.Enter(t)), Links: map[string]*net.Interface{}}
	for _, name := range []string{"pod0", "uplink", "uplink2"} {
		testns.Run(t, "ip", "link", "add", name, "type", "veth", "peer", "name", name+"p")
		testns.Run(t, "ip", "link", "set", name, "up")
		testns.Run(t, "ip", "link", "set", name+"p", "up")
	}
	for _, name := range []string{"vip", "local"} {
		testns.Run(t, "ip", "address", "add", Addr(iptables.IPv4, name).String()+"/32", "dev", "lo")
		testns.Run(t, "ip", "address", "add", Addr(iptables.IPv6, name).String()+"/128", "dev", "lo", "nodad")
	}
	// All other packets that leave go to the pods.
	testns.Run(t, "ip", "route", "add", "default", "dev", "pod0")
	testns.Run(t, "ip", "-6", "route", "add", "default", "dev", "pod0")
	rules := filepath.Join(t.TempDir(), "observer.nft")
	if err := os.WriteFile(rules, []byte(observer), 0o600); err != nil {
		t.Fatal(err)
	}
	testns.Run(t, "nft", "-f", rules)
	for _, name := range []string{"lo", "pod0", "uplink", "uplink2", "pod0p", "uplinkp", "uplink2p"} {
		link, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		n.Links[name] = link
	}
	var err error
	if n.Conn, err = nftables.New(nftables.WithNetNSFd(n.NetNS), nftables.AsLasting()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Conn.CloseLasting() })
	if n.frames, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(n.frames) })
	return n
}

// Send makes a packet pass a hook and returns its verdict: untracked, tracked or dropped.
func (n *Node) Send(t *testing.T, h iptables.Hook, p Packet) string {
	t.Helper()
	before := n.Counted(t)
	n.Inject(t, h, p)
	fence := p
	fence.Proto = iptables.UDP
	fence.Src, fence.Dst = AddrPort(iptables.FamilyOf(p.Dst.Addr()), "other:9"), AddrPort(iptables.FamilyOf(p.Dst.Addr()), "other:9")
	if h == iptables.Output && p.Device == "lo" {
		fence.Dst = AddrPort(iptables.FamilyOf(p.Dst.Addr()), "vip:9")
	}
	n.Inject(t, h, fence)
	Await(t, "the fence after the packet is counted", func() bool {
		return n.Counted(t)["fence"] > before["fence"]
	})
	after := n.Counted(t)
	if came := after["arrived"] - before["arrived"]; came != 1 {
		t.Fatalf("%s: %d packets came to hook %s", p, came, h)
	}
	switch {
	case after["untracked"] > before["untracked"]:
		return "untracked"
	case after["tracked"] > before["tracked"]:
		return "tracked"
	}
	return "dropped"
}

// Counted reads the observer's counters.
func (n *Node) Counted(t *testing.T) map[string]uint64 {
	t.Helper()
	objs, err := n.Conn.GetNamedObjects(&nftables.Table{Name: "observer", Family: nftables.TableFamilyINet})
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

// Inject makes a packet pass a hook. In prerouting it comes in over the device as a frame,
// with any addresses. In output it is sent from a raw socket, and the routes must lead to
// the device.
func (n *Node) Inject(t *testing.T, h iptables.Hook, p Packet) {
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

func (n *Node) arrive(p Packet) error {
	return n.Deliver(p.Device, n.Links[p.Device].HardwareAddr, Wire(p))
}

// Deliver makes any packet come in over a device, sent to a link-layer address.
func (n *Node) Deliver(device string, to net.HardwareAddr, packet []byte) error {
	far := n.Links[device+"p"]
	if device == "lo" {
		far = n.Links[device]
	}
	ethertype := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		ethertype = unix.ETH_P_IPV6
	}
	inNetworkOrder := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, ethertype))
	addr := &unix.SockaddrLinklayer{Protocol: inNetworkOrder, Ifindex: far.Index, Halen: 6}
	copy(addr.Addr[:], to)
	return unix.Sendto(n.frames, packet, 0, addr)
}

func leave(p Packet) error {
	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(p.Dst.Addr().AsSlice()[:4])})
	if p.Dst.Addr().Is6() {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: p.Dst.Addr().As16()}
	}
	// With IPPROTO_RAW the packet has its own header (raw(7)).
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	err = unix.Sendto(fd, Wire(p), 0, to)
	if errors.Is(err, unix.EPERM) {
		err = nil // the observer, or a rule, dropped it
	}
	return errors.Join(err, unix.Close(fd))
}

// Wire encodes a packet with an empty payload.
func Wire(p Packet) []byte {
	const udpLen, tcpLen = 8, 20
	segment := make([]byte, udpLen)
	sum := 6
	if p.Proto == iptables.TCP {
		segment, sum = make([]byte, tcpLen), 16
		segment[12] = tcpLen / 4 << 4
		if p.SYN {
			segment[13] |= 0x02
		}
		if p.ACK {
			segment[13] |= 0x10
		}
		if p.FIN {
			segment[13] |= 0x01
		}
		if p.RST {
			segment[13] |= 0x04
		}
		binary.BigEndian.PutUint16(segment[14:], 65535) // window
	} else {
		binary.BigEndian.PutUint16(segment[4:], udpLen)
	}
	binary.BigEndian.PutUint16(segment[0:], p.Src.Port())
	binary.BigEndian.PutUint16(segment[2:], p.Dst.Port())
	pseudo := slices.Concat(p.Src.Addr().AsSlice(), p.Dst.Addr().AsSlice(), []byte{0, byte(p.Proto), 0, byte(len(segment))})
	binary.BigEndian.PutUint16(segment[sum:], Checksum(append(pseudo, segment...)))

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
	binary.BigEndian.PutUint16(header[10:], Checksum(header))
	return append(header, segment...)
}

// Checksum returns the checksum of RFC 1071.
func Checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
