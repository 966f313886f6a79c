// Package entries finds and deletes conntrack entries of DNS at the listen addresses:
// those of connections, of our own queries and of late answers.
package entries

import (
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
)

// withTable runs f on a connection to the kernel's table. It does nothing where the kernel
// has no connection tracking.
func withTable(f func(*conntrack.Conn) error) error {
	conn, err := conntrack.Dial(nil)
	if err != nil {
		if errors.Is(err, conntrack.ErrUnavailable) {
			return nil
		}
		return err
	}
	defer conn.Close()
	err = f(conn)
	if errors.Is(err, conntrack.ErrUnavailable) {
		return nil
	}
	return err
}

// Connections returns the TCP connections to the endpoints that are in the kernel's table.
// The failover table rewrites connections: their entries have the Service's address.
func Connections(endpoints []iptables.Endpoint, pairs []failover.Pair) ([]iptables.Connection, error) {
	var out []iptables.Connection
	err := withTable(func(conn *conntrack.Conn) error {
		return conn.Dump(conntrack.Filter{Protocols: []conntrack.Protocol{unix.IPPROTO_TCP}}, func(e *conntrack.Entry) error {
			o := e.Original
			if ended(e) {
				return nil
			}
			listen := iptables.Endpoint{Addr: o.Dst, Port: o.DstPort, Proto: iptables.TCP}
			if l, ok := failover.ListenOf(pairs, o.Zone, listen.AddrPort()); ok {
				listen.Addr = l.Addr()
			}
			if slices.Contains(endpoints, listen) {
				out = append(out, iptables.Connection{Client: netip.AddrPortFrom(o.Src, o.SrcPort), Listen: listen.AddrPort()})
			}
			return nil
		})
	})
	return out, err
}

// ended reports whether a TCP connection has ended, although its entry remains.
func ended(e *conntrack.Entry) bool {
	state := e.State()
	return state == "TIME_WAIT" || state == "CLOSE"
}

// PurgeReversed deletes entries that our responses created: their original source is a
// listen endpoint. The client's next query from the same port would match such an entry in
// reply direction, and DNAT would not rewrite it.
func PurgeReversed(endpoints []iptables.Endpoint) error {
	return withTable(func(conn *conntrack.Conn) error {
		var found []conntrack.Entry
		err := conn.Dump(conntrack.Filter{Protocols: []conntrack.Protocol{unix.IPPROTO_UDP, unix.IPPROTO_TCP}}, func(e *conntrack.Entry) error {
			o := e.Original
			if slices.Contains(endpoints, iptables.Endpoint{Addr: o.Src, Port: o.SrcPort, Proto: iptables.Proto(o.Proto)}) && o.DstPort != o.SrcPort {
				found = append(found, *e)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i := range found {
			if err := conn.Delete(&found[i]); err != nil && !errors.Is(err, conntrack.ErrNotFound) {
				return err
			}
		}
		return nil
	})
}
