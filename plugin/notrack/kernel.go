package notrack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/kubeproxy"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// withTable runs f on a connection to the kernel's table. Where the kernel has
// no connection tracking there is nothing to look at.
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

// trackedConnections returns the TCP connections to the endpoints that stand in
// the table. Those that went through the failover table stand there under the
// Service's address.
func trackedConnections(endpoints []iptables.Endpoint, pairs []failover.Pair) ([]iptables.Connection, error) {
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

// ended reports whether a TCP connection is over, although its entry stays for
// a while.
func ended(e *conntrack.Entry) bool {
	state := e.State()
	return state == "TIME_WAIT" || state == "CLOSE"
}

// purgeReversed deletes entries that responses of ours made: their original
// source is a listen endpoint. The client's next query from the same port would
// match such an entry in reply direction and never be rewritten.
func purgeReversed(endpoints []iptables.Endpoint) error {
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

// services knows which addresses a Service owns. What it found out about a
// listen address it keeps: once we are attached, asking would be answered by
// ourselves.
type services struct {
	mu    sync.Mutex
	owned map[netip.Addr]bool
}

// names reports whether kubelet's environment or kube-proxy's rules, where they
// can be read, name the address as that of a Service.
func (s *services) names(a netip.Addr) bool {
	if slices.Contains(serviceHosts(os.Environ()), a) {
		return true
	}
	for _, named := range []func(netip.Addr) (bool, error){
		func(a netip.Addr) (bool, error) { return kubeproxy.IsService(kubeproxy.Config{}, a) },
		func(a netip.Addr) (bool, error) { return legacy.IsService(legacy.Config{}, a) },
	} {
		switch is, err := named(a); {
		case err != nil:
			log.Debugf("whether %s is a Service address: %v", a, err)
		case is:
			return true
		}
	}
	return false
}

// owns reports whether a Service owns a listen address: one that is named, or,
// for rules that cannot be read, at which somebody answers before we do.
func (s *services) owns(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if owned, known := s.owned[a]; known {
		return owned
	}
	if s.owned == nil {
		s.owned = map[netip.Addr]bool{}
	}
	owned := !a.IsLinkLocalUnicast() && !a.IsLoopback() && !failsOver(a) &&
		(s.names(a) || answersTracked(netip.AddrPortFrom(a, 53)))
	s.owned[a] = owned
	return owned
}

// failsOver reports whether the failover table rewrites queries to the address:
// they are answered although no Service owns it.
func failsOver(a netip.Addr) bool {
	f, err := failover.Read(failover.Config{})
	return err == nil && slices.ContainsFunc(f.Pairs, func(p failover.Pair) bool { return p.Listen == a })
}

// unowned returns the addresses that no Service owns.
func (s *services) unowned(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if !s.owns(a) {
			out = append(out, a)
		}
	}
	return out
}

// answersTracked asks an address as a client whose queries are tracked does, and
// removes the entry that this leaves.
func answersTracked(server netip.AddrPort) bool {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return false
	}
	defer conn.Close()
	query, err := new(dns.Msg).SetQuestion(".", dns.TypeNS).Pack()
	if err != nil {
		return false
	}
	if err := conn.SetDeadline(time.Now().Add(checkTimeout)); err != nil {
		return false
	}
	if _, err := conn.Write(query); err != nil {
		return false
	}
	_, err = conn.Read(make([]byte, dns.MaxMsgSize))
	client := sockets.Unmap(conn.LocalAddr().(*net.UDPAddr).AddrPort())
	if _, _, err := process.zones.tracked(client, server); err != nil {
		log.Debugf("delete the entry of a question to %s: %v", server, err)
	}
	return err == nil
}

// serviceHosts are the ClusterIPs that kubelet put into our environment as
// NAME_SERVICE_HOST.
func serviceHosts(environ []string) []netip.Addr {
	var out []netip.Addr
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		if a, err := netip.ParseAddr(value); err == nil && strings.HasSuffix(name, "_SERVICE_HOST") {
			out = append(out, a)
		}
	}
	return out
}
