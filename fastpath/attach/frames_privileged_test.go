//go:build privileged

package attach

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/fastpath/kernel"
	"github.com/trackless-dns/trackless/internal/testns"
)

var (
	portMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	bridgeMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	otherMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 3}
)

// The program answers the frames that the node itself would take, and no others: a bridge
// forwards those to another host, and a device without a bridge drops them. A header that is
// not linear is read as any other.
func TestFrames(t *testing.T) {
	t.Parallel()
	const whole = 1 << 16
	for _, row := range []struct {
		name    string
		bridged bool
		to      net.HardwareAddr
		proto   byte
		linear  int // bytes of the frame that are linear
		want    bool
	}{
		{"to the device", false, portMAC, unix.IPPROTO_UDP, whole, true},
		{"to another host", false, otherMAC, unix.IPPROTO_UDP, whole, false},
		{"a header that is not linear", false, portMAC, unix.IPPROTO_UDP, 14, true},
		{"a TCP header that is not linear", false, portMAC, unix.IPPROTO_TCP, 14, false},
		{"to the bridge", true, bridgeMAC, unix.IPPROTO_UDP, whole, true},
		{"to the port", true, portMAC, unix.IPPROTO_UDP, whole, true},
		{"to another host over the bridge", true, otherMAC, unix.IPPROTO_UDP, whole, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p, node, pod := load(t), testns.New(t), testns.New(t)
			ip(t, node, fmt.Sprintf("link add pod type veth peer name eth0 mtu 9000 netns /proc/%d/fd/%d", os.Getpid(), pod.FD()),
				fmt.Sprintf("link set pod mtu 9000 address %s", portMAC))
			if row.bridged {
				ip(t, node, fmt.Sprintf("link add cni0 address %s type bridge", bridgeMAC), "link set pod master cni0", "link set cni0 up")
			}
			ip(t, node, "link set pod up")
			ip(t, pod, "link set eth0 up")
			server := netip.MustParseAddrPort("10.96.0.10:53")
			if err := p.Listen(server, 0, 1<<16-1); err != nil {
				t.Fatal(err)
			}
			p.Open(0, time.Now().Add(time.Hour))
			publish(t, p, "www.example.")
			w, _ := watch(t, node, Config{Program: p.BPF(), Bridge: p.Bridge})
			waitFor(t, "attached", func() bool { return w.attached() == "pod" })
			fd := packetSocket(t, pod)
			// Frames stay in order. So the last one, which is answered, tells that the first
			// one has come.
			waitFor(t, "a frame is answered, when the link is up", func() bool {
				before := hits(t, p)
				send(t, fd, frameTo(portMAC, server, unix.IPPROTO_UDP), whole)
				time.Sleep(time.Millisecond)
				return hits(t, p) > before
			})
			before := hits(t, p)
			send(t, fd, frameTo(row.to, server, row.proto), row.linear)
			send(t, fd, frameTo(portMAC, server, unix.IPPROTO_UDP), whole)
			want := before + 1
			if row.want {
				want++
			}
			waitFor(t, "the last frame is answered", func() bool { return hits(t, p) >= want })
			if got := hits(t, p); got != want {
				t.Errorf("%d hits, want %d", got-before, want-before)
			}
		})
	}
}

func hits(t testing.TB, p *kernel.Program) (n uint64) {
	t.Helper()
	all, err := p.Hits(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		n += h
	}
	return n
}

// packetSocket opens a socket that sends frames, and says how much of each is linear.
func packetSocket(t testing.TB, pod *testns.Namespace) (fd int) {
	t.Helper()
	pod.Do(func() {
		device, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: device.Index}); err != nil {
			t.Fatal(err)
		}
	})
	return fd
}

// send sends a frame of which the first bytes are linear: from a page on the kernel keeps the
// rest in pages of its own.
func send(t testing.TB, fd int, frame []byte, linear int) {
	t.Helper()
	if linear < len(frame) {
		frame = append(frame, make([]byte, 2*os.Getpagesize()-len(frame))...)
	}
	header := make([]byte, 10) // struct virtio_net_hdr of linux/virtio_net.h
	binary.NativeEndian.PutUint16(header[2:], uint16(min(linear, len(frame))))
	if _, err := unix.Write(fd, append(header, frame...)); err != nil {
		t.Fatal(err)
	}
}

// frameTo is a query for www.example., in a datagram or in what has only its layout.
func frameTo(to net.HardwareAddr, server netip.AddrPort, proto byte) []byte {
	query, err := new(dns.Msg).SetQuestion("www.example.", dns.TypeA).Pack()
	if err != nil {
		panic(err)
	}
	frame := append([]byte(nil), to...)
	frame = append(frame, 2, 0, 0, 0, 0, 9, 8, 0)
	ip := make([]byte, 28)
	ip[0], ip[8], ip[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(query)))
	copy(ip[12:], []byte{10, 244, 0, 7})
	copy(ip[16:], server.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[20:], 40000)
	binary.BigEndian.PutUint16(ip[22:], server.Port())
	binary.BigEndian.PutUint16(ip[24:], uint16(8+len(query)))
	return append(append(frame, ip...), query...)
}
