package ledger

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// report builds what the kernel multicasts; infoLen bytes of its tcp_info.
func report(t *testing.T, family byte, client, server string, infoLen int, acked, received, sent, retrans uint64) []byte {
	t.Helper()
	c, s := netip.MustParseAddrPort(client), netip.MustParseAddrPort(server)
	b := make([]byte, sizeofMsg)
	b[0] = family
	binary.BigEndian.PutUint16(b[offsetSourcePort:], s.Port())
	binary.BigEndian.PutUint16(b[offsetDestPort:], c.Port())
	copy(b[offsetSource:], s.Addr().AsSlice())
	copy(b[offsetDest:], c.Addr().AsSlice())
	info := make([]byte, 232)
	for offset, value := range map[int]uint64{
		offsetBytesAcked: acked, offsetBytesReceived: received, offsetBytesSent: sent, offsetBytesRetrans: retrans,
	} {
		binary.NativeEndian.PutUint64(info[offset:], value)
	}
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: 10, Data: []byte{unix.IPPROTO_TCP}}, // INET_DIAG_PROTOCOL
		{Type: inetDiagInfo, Data: info[:infoLen]},
	})
	if err != nil {
		t.Fatal(err)
	}
	return append(b, attributes...)
}

func TestDecodeTCPEnd(t *testing.T) {
	const (
		v4c, v4s = "10.244.0.11:40000", "10.96.0.10:53"
		v6c, v6s = "[fd00:244::b]:40000", "[fd00:10:96::a]:53"
		mapped   = "[::ffff:10.96.0.10]:53"
	)
	for _, tt := range []struct {
		name           string
		report         []byte
		client, server string
		packets        uint64
	}{
		{"closed", report(t, unix.AF_INET, v4c, v4s, 232, 101, 31, 100, 0), v4c, v4s, packetFIN},
		{"closed after a retransmit", report(t, unix.AF_INET, v4c, v4s, 232, 101, 31, 150, 50), v4c, v4s, packetFIN},
		{"reset: our FIN was not acknowledged", report(t, unix.AF_INET, v4c, v4s, 232, 100, 30, 100, 0), v4c, v4s, packetRST},
		{"reset with data under way", report(t, unix.AF_INET, v4c, v4s, 232, 0, 30, 100, 0), v4c, v4s, packetRST},
		{"IPv6", report(t, unix.AF_INET6, v6c, v6s, 232, 101, 31, 100, 0), v6c, v6s, packetFIN},
		{"IPv4 on an IPv6 socket", report(t, unix.AF_INET6, "[::ffff:10.244.0.11]:40000", mapped, 232, 101, 31, 100, 0), v4c, v4s, packetFIN},
		{"no query", report(t, unix.AF_INET, v4c, v4s, 232, 1, 1, 0, 0), v4c, v4s, packetQuery | packetFIN},
		{"no query, reset", report(t, unix.AF_INET, v4c, v4s, 232, 0, 0, 0, 0), v4c, v4s, packetQuery | packetRST},
		{"no query, a check of our own", report(t, unix.AF_INET, "10.96.0.10:40000", v4s, 232, 0, 0, 0, 0), "10.96.0.10:40000", v4s, packetRST},
		{"tcp_info before Linux 4.19", report(t, unix.AF_INET, v4c, v4s, 192, 100, 31, 100, 0), v4c, v4s, packetFIN},
		{"a listener", report(t, unix.AF_INET, "0.0.0.0:0", v4s, 232, 0, 0, 0, 0), "", "", 0},
		{"too short", make([]byte, sizeofMsg-1), "", "", 0},
		{"a broken attribute", append(report(t, unix.AF_INET, v4c, v4s, 232, 101, 31, 100, 0), 9, 0, 1, 0), "", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, ok := decodeTCPEnd(tt.report)
			if ok != (tt.client != "") {
				t.Fatalf("decoded: %v", ok)
			}
			if !ok {
				return
			}
			want := Flow{unix.IPPROTO_TCP, netip.MustParseAddrPort(tt.client), netip.MustParseAddrPort(tt.server)}
			if e.flow != want || e.packets() != tt.packets {
				t.Errorf("%+v, packets %#x; want %+v, %#x", e.flow, e.packets(), want, tt.packets)
			}
		})
	}
}
