package notrack

import (
	"context"
	"net"
	"net/netip"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack/ledger"
)

// ServeDNS implements plugin.Handler.
func (n *NoTrack) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	client, server, proto := addresses(w)
	if len(r.Question) == 1 && client.Addr() == server.Addr() {
		// From this node to itself: perhaps a check of ours. They end here,
		// so that they enter neither metrics nor log nor cache.
		if check, own := n.config.isCheck(r.Question[0].Name); check {
			return n.answerCheck(w, r, own)
		}
	}
	if !process.covers(server.Addr()) {
		return plugin.NextOrFailure(n.Name(), n.Next, ctx, w, r)
	}
	process.pending.Add(1)
	defer process.pending.Add(-1)
	flow := ledger.Flow{Proto: proto, Client: client, Server: server}
	process.ledger.Query(flow)
	rcode, err := plugin.NextOrFailure(n.Name(), n.Next, ctx, w, r)
	process.ledger.Response(flow)
	return rcode, err
}

// answerCheck answers a check of this load with its id. One of another load or
// of another instance, which SO_REUSEPORT brought here, is refused, so that it
// tries again.
func (n *NoTrack) answerCheck(w dns.ResponseWriter, r *dns.Msg, own bool) (int, error) {
	m := new(dns.Msg)
	if !own {
		m.SetRcode(r, dns.RcodeRefused)
		return dns.RcodeSuccess, w.WriteMsg(m)
	}
	m.SetReply(r)
	m.Authoritative = true
	m.Answer = []dns.RR{&dns.TXT{
		Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET},
		Txt: []string{n.config.id},
	}}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// addresses returns the two ends of a query and the protocol between them as
// conntrack's tuple has them; the zero values for other kinds of address.
func addresses(w dns.ResponseWriter) (client, server netip.AddrPort, proto uint8) {
	switch remote := w.RemoteAddr().(type) {
	case *net.UDPAddr:
		local, ok := w.LocalAddr().(*net.UDPAddr)
		if !ok {
			return
		}
		return unmap(remote.AddrPort()), unmap(local.AddrPort()), unix.IPPROTO_UDP
	case *net.TCPAddr:
		local, ok := w.LocalAddr().(*net.TCPAddr)
		if !ok {
			return
		}
		return unmap(remote.AddrPort()), unmap(local.AddrPort()), unix.IPPROTO_TCP
	}
	return
}

func unmap(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
