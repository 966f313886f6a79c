package experiment

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
)

// external is a kube-dns that takes its time. It has a namespace, and every name below example.com.
type external struct {
	queries, bypassed atomic.Int64 // of those, bypassed came from pods
	pods              map[netip.Addr]bool
	servers           []*dns.Server
	serving           sync.WaitGroup
}

// startExternal starts it in the kube-dns pod.
func startExternal(node *lab.Node) (*external, error) {
	e := &external{pods: make(map[netip.Addr]bool)}
	for _, pod := range node.Pods {
		for _, a := range pod.Addrs {
			e.pods[a] = true
		}
	}
	err := node.DNSPod.Do(func() error {
		conn, err := net.ListenPacket("udp", ":53")
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp", ":53")
		if err != nil {
			return errors.Join(err, conn.Close())
		}
		e.servers = []*dns.Server{{PacketConn: conn, Handler: e}, {Listener: listener, Handler: e}}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("start kube-dns in %s: %w", node.DNSPod.Name(), err)
	}
	for _, server := range e.servers {
		ready := make(chan struct{})
		server.NotifyStartedFunc = func() { close(ready) }
		e.serving.Go(func() { _ = server.ActivateAndServe() })
		<-ready
	}
	return e, nil
}

func (e *external) stop() {
	for _, server := range e.servers {
		_ = server.Shutdown()
	}
	e.serving.Wait()
}

// ServeDNS implements dns.Handler.
func (e *external) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	q := r.Question[0]
	name := strings.ToLower(q.Name)
	m := new(dns.Msg).SetReply(r)
	m.RecursionAvailable = true
	inCluster := dns.IsSubDomain("cluster.local.", name)
	if inCluster || dns.IsSubDomain("example.com.", name) {
		e.queries.Add(1)
		if from, err := netip.ParseAddrPort(w.RemoteAddr().String()); err == nil && e.pods[from.Addr().Unmap()] {
			e.bypassed.Add(1)
		}
		time.Sleep(upstreamDelay)
	}
	header := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 300}
	switch {
	case inCluster:
		if name != "default.svc.cluster.local." {
			m.Rcode = dns.RcodeNameError
		}
		m.Ns = []dns.RR{&dns.SOA{
			Hdr: dns.RR_Header{Name: "cluster.local.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 5},
			Ns:  "ns.dns.cluster.local.", Mbox: "hostmaster.cluster.local.", Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: 5,
		}}
	case q.Qtype == dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: header, A: net.IPv4(192, 0, 2, 1)}}
	case q.Qtype == dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.AAAA{Hdr: header, AAAA: net.ParseIP("2001:db8::1")}}
	}
	_ = w.WriteMsg(m) // whoever asked may have stopped
}

// lookup is the outcome of a lookup.
type lookup struct {
	queries int
	found   bool
	first   time.Duration // to the first address
}

// lookUp looks a name up as glibc does with ndots:5: for each domain of the search path A and AAAA at
// once over one socket, until one has an address.
func lookUp(ctx context.Context, from *lab.Namespace, server netip.Addr, base string) (l lookup, err error) {
	var conn net.Conn
	if err := from.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "udp", netip.AddrPortFrom(server, lab.DNSPort).String())
		return err
	}); err != nil {
		return l, fmt.Errorf("look %s up from %s: %w", base, from.Name(), err)
	}
	client := &dns.Conn{Conn: conn}
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	begin := time.Now()
	for _, domain := range searchDomains {
		if err := conn.SetDeadline(time.Now().Add(lab.DefaultTimeout)); err != nil {
			return l, err
		}
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if err := client.WriteMsg(new(dns.Msg).SetQuestion(base+domain, qtype)); err != nil {
				return l, fmt.Errorf("ask for %s: %w", base+domain, err)
			}
			l.queries++
		}
		for range 2 {
			m, err := client.ReadMsg()
			switch {
			case ctx.Err() != nil:
				return l, context.Cause(ctx)
			case err != nil:
				return l, fmt.Errorf("ask for %s: %w", base+domain, err)
			}
			for _, rr := range m.Answer {
				if t := rr.Header().Rrtype; !l.found && (t == dns.TypeA || t == dns.TypeAAAA) {
					l.found, l.first = true, time.Since(begin)
				}
			}
		}
		if l.found {
			break
		}
	}
	return l, nil
}
