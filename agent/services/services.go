// Package services finds out which addresses belong to Services, and which Service answers
// for a listen address after a failover.
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

// Services finds out which addresses a Service owns. It remembers the result for a listen
// address: while we are attached, we would answer the question ourselves.
type Services struct {
	Log logger.Logger

	// Tracked finds and deletes the conntrack entry of our own question.
	Tracked func(client, server netip.AddrPort) (zone uint16, found bool, err error)

	mu    sync.Mutex
	owned map[netip.Addr]bool
}

// names reports whether the address is a Service in kubelet's environment or in
// kube-proxy's rules, as far as they can be read.
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
			s.Log.Debugf("cannot check whether %s is a Service address: %v", a, err)
		case is:
			return true
		}
	}
	return false
}

// owns reports whether a Service owns a listen address. If the rules do not say so, it
// asks the address: an answer before we listen there is that of a Service.
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

// failsOver reports whether the failover table rewrites queries to the address. Such
// queries are answered although no Service owns the address.
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

// answersTracked asks an address as a client whose queries are tracked. It removes the
// conntrack entry of the question.
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

// HostVariable returns the name of the environment variable in which kubelet puts the
// ClusterIP of a Service.
func HostVariable(service string) string {
	return strings.ToUpper(strings.ReplaceAll(service, "-", "_")) + hostSuffix
}

const hostSuffix = "_SERVICE_HOST"

// ServiceHosts returns the ClusterIPs that kubelet put into an environment.
func ServiceHosts(environ []string) []netip.Addr {
	var out []netip.Addr
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		if a, err := netip.ParseAddr(value); err == nil && strings.HasSuffix(name, hostSuffix) {
			out = append(out, a)
		}
	}
	return out
}

// HasEndpoints reports whether a Service has endpoints, in any kind of kube-proxy's rules.
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
