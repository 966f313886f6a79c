package nft

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// traffic is the queries to an endpoint, or the responses from it.
type traffic struct {
	endpoint  iptables.Endpoint
	direction iptables.Direction
}

// meetsAll reports whether a rule meets all of the traffic.
func meetsAll(r nfnl.Rule, a traffic) bool {
	w := &way{in: &netDevice{}, out: &netDevice{}, anyClient: true}
	o := evaluate(r, probe{a.endpoint, a.direction, w}, func(string) ([]nfnl.Element, error) { return nil, nil })
	return o.matches == always
}

// asks reads what a rule of ours asks for, whether we wrote it or iptables has
// written it anew.
func asks(r nfnl.Rule) (a traffic) {
	var at nfnl.Expression
	for _, e := range r.Exprs {
		switch e.Name {
		case "payload":
			at = e
		case "match":
			if info := e.Attrs[unix.NFTA_MATCH_INFO]; (e.Extension() == "udp" || e.Extension() == "tcp") && len(info) >= 8 {
				ports := 0
				if a.direction == iptables.Query {
					ports = 4
				}
				a.endpoint.Port = binary.NativeEndian.Uint16(info[ports:])
			}
		case "cmp":
			value := e.Value(unix.NFTA_CMP_DATA)
			switch len(value) {
			case 1:
				a.endpoint.Proto = iptables.Proto(value[0])
			case 2:
				a.endpoint.Port = binary.BigEndian.Uint16(value)
			case 4, 16:
				a.endpoint.Addr, _ = netip.AddrFromSlice(value)
				a.direction = iptables.Query
				if offset := at.Number(unix.NFTA_PAYLOAD_OFFSET); offset == 12 || offset == 8 {
					a.direction = iptables.Response
				}
			}
		}
	}
	return a
}
