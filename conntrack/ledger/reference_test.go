package ledger

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// traffic yields random flows as DNS clients make them: mostly fresh ports, some
// from sockets that are used for long, retransmits, lost and late responses.
type traffic struct {
	rng   *rand.Rand
	ports int // distinct source ports per client
	pods  int
}

func (tr *traffic) flow() Flow {
	f := Flow{Proto: unix.IPPROTO_UDP}
	if tr.rng.IntN(10) == 0 {
		f.Proto = unix.IPPROTO_TCP
	}
	pod, port := byte(tr.rng.IntN(tr.pods)), uint16(1024+tr.rng.IntN(tr.ports))
	if tr.rng.IntN(3) == 0 {
		ip := netip.MustParseAddr("fd00:244::").As16()
		ip[15] = pod
		f.Client = netip.AddrPortFrom(netip.AddrFrom16(ip), port)
		f.Server = netip.MustParseAddrPort("[fd00:10:96::a]:53")
		return f
	}
	f.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 0, pod}), port)
	f.Server = netip.MustParseAddrPort("10.96.0.10:53")
	return f
}

func Example() {
	l := New(Config{})
	flow := Flow{
		Proto:  unix.IPPROTO_UDP,
		Client: netip.MustParseAddrPort("10.244.0.11:40000"),
		Server: netip.MustParseAddrPort("10.96.0.10:53"),
	}
	l.Query(flow)
	l.Response(flow)
	fmt.Println(l.Entries().Total(), "entry,", l.Flows().UDP4, "flow")
	// Output: 1 entry, 1 flow
}
