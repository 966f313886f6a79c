//go:build privileged

package measure

import (
	"net/netip"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/probe"
)

func TestTranslatedTo(t *testing.T) {
	t.Parallel()
	ns := testns.New(t)
	c, err := conntrack.Dial(&conntrack.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	service, endpoint := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("10.244.1.53")
	from := func(port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.MustParseAddr("10.244.0.7"), port)
	}
	for port, server := range map[uint16]netip.Addr{4001: service, 4002: endpoint} {
		e := &conntrack.Entry{Timeout: time.Minute}
		e.Original = conntrack.Tuple{Src: from(port).Addr(), Dst: service, SrcPort: port, DstPort: 53, Proto: conntrack.UDP}
		e.Reply = e.Original.Mirror()
		e.Reply.Src = server
		if err := c.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name string
		from uint16
		want netip.Addr
	}{
		{"answered by the server", 4001, netip.Addr{}},
		{"answered by another one", 4002, endpoint},
		{"not tracked", 4003, netip.Addr{}},
	} {
		asked := probe.Asked{Answers: advice.Answers{Server: service}, From: []netip.AddrPort{from(tc.from)}}
		if got, err := translatedTo(c, asked); got != tc.want || err != nil {
			t.Errorf("%s: %s, %v; want %s", tc.name, got, err, tc.want)
		}
	}
}
