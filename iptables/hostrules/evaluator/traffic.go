package evaluator

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
)

// Traffic is the queries to an endpoint, or the responses from it.
type Traffic struct {
	Endpoint  iptables.Endpoint
	Direction iptables.Direction
}

// MatchesAll reports whether a rule matches all of the traffic.
func MatchesAll(r nfnl.Rule, a Traffic) bool {
	path := &Path{In: &Device{}, Out: &Device{}, AnyClient: true}
	o := Evaluate(r, Probe{a.Endpoint, a.Direction, path}, func(string) ([]nfnl.Element, error) { return nil, nil })
	return o.Matches == Always
}

// TrafficOf returns the traffic that a rule of ours matches, in our form or in that of
// iptables.
func TrafficOf(r nfnl.Rule) (a Traffic) {
	var at nfnl.Expression
	for _, e := range r.Exprs {
		switch e.Name {
		case "payload":
			at = e
		case "match":
			if info := e.Attrs[unix.NFTA_MATCH_INFO]; (e.Extension() == "udp" || e.Extension() == "tcp") && len(info) >= 8 {
				ports := 0
				if a.Direction == iptables.Query {
					ports = 4
				}
				a.Endpoint.Port = binary.NativeEndian.Uint16(info[ports:])
			}
		case "cmp":
			value := e.Value(unix.NFTA_CMP_DATA)
			switch len(value) {
			case 1:
				a.Endpoint.Proto = iptables.Proto(value[0])
			case 2:
				a.Endpoint.Port = binary.BigEndian.Uint16(value)
			case 4, 16:
				a.Endpoint.Addr, _ = netip.AddrFromSlice(value)
				a.Direction = iptables.Query
				if offset := at.Number(unix.NFTA_PAYLOAD_OFFSET); offset == 12 || offset == 8 {
					a.Direction = iptables.Response
				}
			}
		}
	}
	return a
}
