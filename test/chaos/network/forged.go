package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// Forgeries are what a pod can send that has CAP_NET_RAW, as pods have by default.
func Forgeries() []*scene.Case {
	return []*scene.Case{
		{
			Name: "forged-martian", Fault: "a pod on a bridge sends queries with martian sources", Bar: "0 lost, the other pods of the bridge served by the cache",
			Prime: bridgedPods,
			Sabotage: scene.Sabotage{
				What: "the look at where the source of a query is", Fails: scene.FailResponder,
				Server: scene.WithoutReconciler(credulousTable),
			},
			Play: func(s *scene.Scene) error {
				if err := s.Fault("forged", scene.NoLoss); err != nil {
					return err
				}
				stop := forge(s, martianInterval, func(i int) []byte {
					return ipv4(unix.IPPROTO_UDP, martians[i%len(martians)], lab.ClusterDNS4, udpQuery)
				})
				s.Steady("sources forged", lab.Trackless, 4*time.Second)
				if err := stop(); err != nil {
					return err
				}
				return s.ProveTakeover()
			},
		},
		{
			Name: "syn-flood", Fault: "110,000 SYNs from one pod, then connections, then SIGTERM", Bar: "0 lost",
			Prime: bridgedPods,
			Warm:  floodWithSYNs,
			Sabotage: scene.Sabotage{
				What: "the drain of the connections that the server holds", Fails: scene.FailLost,
				Apply: trackConnections,
			},
			Play: func(s *scene.Scene) error { return s.ProveTakeover() },
		},
	}
}

// The bridge with its pods, of which one asks seldom and the other forges.
const (
	bridgeLink      = "cni0"
	bridgeGateway   = "10.244.1.1"
	martianInterval = 50 * time.Millisecond

	// quietRate is so low that there are moments in which nobody behind the
	// bridge asks: the fault is about these.
	quietRate = 0.7
)

var (
	quietPod  = netip.MustParseAddr("10.244.1.20")
	forgerPod = netip.MustParseAddr("10.244.1.21")
)

// martians are sources that the kernel drops behind the raw hook: loopback, an
// address of the node, a listen address, and a broadcast address.
var martians = []netip.Addr{
	netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr(bridgeGateway), lab.ClusterDNS4, netip.MustParseAddr("10.244.1.255"),
}

// bridgedPods puts two pods behind a bridge of the node, as most CNIs do.
func bridgedPods(s *scene.Scene) error {
	node := s.Node.Namespace
	if err := scene.RunAll(node, "ip link add "+bridgeLink+" type bridge", "ip link set "+bridgeLink+" up", "ip address add "+bridgeGateway+"/24 dev "+bridgeLink); err != nil {
		return err
	}
	pods := make([]*lab.Namespace, 2)
	for i, addr := range []netip.Addr{quietPod, forgerPod} {
		pod, err := lab.NewNamespace("bridged-" + addr.String())
		if err != nil {
			return err
		}
		s.Cleanups = append(s.Cleanups, pod.Close)
		port := fmt.Sprintf("port%d", i)
		err = scene.FirstError(
			func() error {
				return scene.RunAll(node,
					fmt.Sprintf("ip link add %s type veth peer name eth0 netns /proc/%d/fd/%d", port, os.Getpid(), pod.FD()),
					"ip link set "+port+" master "+bridgeLink, "ip link set "+port+" up")
			},
			func() error {
				return scene.RunAll(pod, "ip link set eth0 up", fmt.Sprintf("ip address add %s/24 dev eth0", addr), "ip route add default via "+bridgeGateway)
			},
		)
		if err != nil {
			return err
		}
		pods[i] = pod
	}
	s.Forger = pods[1]
	s.ExtraStreams = []clients.Stream{{Kind: clients.FreshPort, From: pods[0], Target: lab.ClusterDNS4, Rate: quietRate}}
	return nil
}

// forge sends a frame of the forger at each interval until stop is called.
func forge(s *scene.Scene, interval time.Duration, packet func(i int) []byte) (stop func() error) {
	done, result := make(chan struct{}), make(chan error, 1)
	go func() {
		result <- fromForger(s, func(send func([]byte) error) error {
			ticker := time.NewTicker(interval)
			defer ticker.Stop()
			for i := 0; ; i++ {
				select {
				case <-done:
					return nil
				case <-ticker.C:
				}
				if err := send(packet(i)); err != nil {
					return err
				}
			}
		})
	}()
	return func() error {
		close(done)
		return <-result
	}
}

// A flood of as many SYNs as fill a set of the rules, and more.
const (
	floodSYNs  = 110_000
	floodBatch = 400 // each floodPause: 20,000 SYNs a second
	floodPause = 20 * time.Millisecond
)

// floodWithSYNs begins connections that nobody goes on with.
func floodWithSYNs(s *scene.Scene) error {
	// The forger's own kernel would reset what it knows nothing of.
	if _, err := scene.RunProgram(s.Forger, "table ip silent {\n\tchain input { type filter hook input priority 0; meta l4proto tcp drop; }\n}\n", "nft", "-f", "-"); err != nil {
		return err
	}
	targets := []netip.Addr{lab.ClusterDNS4, lab.LinkLocalDNS4}
	return fromForger(s, func(send func([]byte) error) error {
		ticker := time.NewTicker(floodPause)
		defer ticker.Stop()
		for i := range floodSYNs {
			if i%floodBatch == 0 {
				<-ticker.C
			}
			port := uint16(1024 + i/len(targets))
			if err := send(ipv4(unix.IPPROTO_TCP, forgerPod, targets[i%len(targets)], tcpSYN(port))); err != nil {
				return err
			}
		}
		return nil
	})
}

// fromForger calls fn with a function that sends a packet of any content to the
// node, as the forger's link sends it.
func fromForger(s *scene.Scene, fn func(send func([]byte) error) error) error {
	var mac net.HardwareAddr
	err := s.Node.Namespace.Do(func() error {
		link, err := net.InterfaceByName(bridgeLink)
		if err == nil {
			mac = link.HardwareAddr
		}
		return err
	})
	if err != nil {
		return err
	}
	return s.Forger.Do(func() (err error) {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		to := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_IP), Ifindex: link.Index, Halen: uint8(len(mac))}
		copy(to.Addr[:], mac)
		return fn(func(packet []byte) error {
			for {
				err := unix.Sendto(fd, packet, 0, to)
				if !errors.Is(err, unix.ENOBUFS) {
					return err
				}
				time.Sleep(time.Millisecond)
			}
		})
	})
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// ipv4 is a packet without options; the checksum of what it carries is filled in
// where TCP has it.
func ipv4(proto byte, src, dst netip.Addr, payload []byte) []byte {
	payload = slices.Clone(payload)
	if proto == unix.IPPROTO_TCP {
		pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, proto, 0, byte(len(payload))}, payload)
		binary.BigEndian.PutUint16(payload[16:], checksum(pseudo))
	}
	header := slices.Concat([]byte{4<<4 | 5, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0}, src.AsSlice(), dst.AsSlice())
	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(payload)))
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(header, payload...)
}

// udpQuery asks for nothing, from port 4000, and leaves the checksum out.
var udpQuery = []byte{4000 >> 8, 4000 & 0xff, 0, 53, 0, 8, 0, 0}

// tcpSYN begins a connection to port 53.
func tcpSYN(port uint16) []byte {
	segment := make([]byte, 20)
	binary.BigEndian.PutUint16(segment, port)
	segment[3] = 53
	segment[12], segment[13] = 5<<4, 0x02
	binary.BigEndian.PutUint16(segment[14:], 65535) // window
	return segment
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// credulousTable untracks for good, but for devices from which a martian came: it
// takes these for devices whose queries are lost.
func credulousTable(s *scene.Scene) error {
	table := strings.Replace(scene.PlainTable(), "\tchain prerouting {\n\t\ttype filter hook prerouting priority raw; policy accept;\n",
		`	set aside {
		type ifname
		flags dynamic,timeout
	}
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		iifname != "lo" ip saddr 127.0.0.0/8 update @aside { iifname timeout 1m }
		iifname @aside accept
`, 1)
	_, err := scene.RunProgram(s.Node.Namespace, table, "nft", "-f", "-")
	return err
}

// trackConnections makes conntrack track the segments of connections, whoever has
// untracked them: a zone undoes that.
func trackConnections(s *scene.Scene) error {
	_, err := scene.RunProgram(s.Node.Namespace, fmt.Sprintf(`table inet tracking {
	chain prerouting {
		type filter hook prerouting priority -299; policy accept;
		ip daddr { %s } tcp dport 53 ct zone set 1
		ip6 daddr { %s } tcp dport 53 ct zone set 1
	}
}
`, scene.Joined(false), scene.Joined(true)), "nft", "-f", "-")
	return err
}
