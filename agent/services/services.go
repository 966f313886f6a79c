// Package services knows which addresses are those of Services, and which Service
// answers for a listen address in our place.
package services

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

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/internal/logger"
	"github.com/trackless-dns/trackless/iptables/failover"
	"github.com/trackless-dns/trackless/iptables/kubeproxy"
	"github.com/trackless-dns/trackless/iptables/legacy"
)

// Services knows which addresses a Service owns. What it found out about a
// listen address it keeps: once we are attached, asking would be answered by
// ourselves.
type Services struct {
	Log logger.Logger

	// Tracked deletes the entry of a question of our own.
	Tracked func(client, server netip.AddrPort) (zone uint16, found bool, err error)

	mu    sync.Mutex
	owned map[netip.Addr]bool
}

// names reports whether kubelet's environment or kube-proxy's rules, where they
// can be read, name the address as that of a Service.
func (s *Services) names(a netip.Addr) bool {
	if slices.Contains(ServiceHosts(os.Environ()), a) {
		return true
	}
	for _, named := range []func(netip.Addr) (bool, error){
		func(a netip.Addr) (bool, error) { return kubeproxy.IsService(kubeproxy.Config{}, a) },
		func(a netip.Addr) (bool, error) { return legacy.IsService(legacy.Config{}, a) },
	} {
		switch is, err := named(a); {
		case err != nil:
			s.Log.Debugf("whether %s is a Service address: %v", a, err)
		case is:
			return true
		}
	}
	return false
}

// owns reports whether a Service owns a listen address: one that is named, or,
// for rules that cannot be read, at which somebody answers before we do.
func (s *Services) owns(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if owned, known := s.owned[a]; known {
		return owned
	}
	if s.owned == nil {
		s.owned = map[netip.Addr]bool{}
	}
	owned := !a.IsLinkLocalUnicast() && !a.IsLoopback() && !failsOver(a) &&
		(s.names(a) || s.answersTracked(netip.AddrPortFrom(a, 53)))
	s.owned[a] = owned
	return owned
}

// failsOver reports whether the failover table rewrites queries to the address:
// they are answered although no Service owns it.
func failsOver(a netip.Addr) bool {
	f, err := failover.Read(failover.Config{})
	return err == nil && slices.ContainsFunc(f.Pairs, func(p failover.Pair) bool { return p.Listen == a })
}

// Unowned returns the addresses that no Service owns.
func (s *Services) Unowned(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if !s.owns(a) {
			out = append(out, a)
		}
	}
	return out
}

// askTimeout bounds a question to an address that may be a Service's.
const askTimeout = 250 * time.Millisecond

// answersTracked asks an address as a client whose queries are tracked does, and
// removes the entry that this leaves.
func (s *Services) answersTracked(server netip.AddrPort) bool {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return false
	}
	defer conn.Close()
	query, err := new(dns.Msg).SetQuestion(".", dns.TypeNS).Pack()
	if err != nil {
		return false
	}
	if err := conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return false
	}
	if _, err := conn.Write(query); err != nil {
		return false
	}
	_, err = conn.Read(make([]byte, dns.MaxMsgSize))
	client := sockets.Unmap(conn.LocalAddr().(*net.UDPAddr).AddrPort())
	if _, _, err := s.Tracked(client, server); err != nil {
		s.Log.Debugf("delete the entry of a question to %s: %v", server, err)
	}
	return err == nil
}

// ServiceHosts are the ClusterIPs that kubelet put into our environment as
// NAME_SERVICE_HOST.
func ServiceHosts(environ []string) []netip.Addr {
	var out []netip.Addr
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		if a, err := netip.ParseAddr(value); err == nil && strings.HasSuffix(name, "_SERVICE_HOST") {
			out = append(out, a)
		}
	}
	return out
}

// HasEndpoints asks all the kinds of rules that kube-proxy may have made.
func HasEndpoints(service netip.AddrPort) (bool, error) {
	there, err := kubeproxy.HasEndpoints(kubeproxy.Config{}, service)
	if there {
		return true, nil
	}
	there, legacyErr := legacy.IsService(legacy.Config{}, service.Addr())
	if there {
		return true, nil
	}
	return false, errors.Join(err, legacyErr)
}
