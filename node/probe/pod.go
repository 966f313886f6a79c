package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/netns"
)

// A Pod is a pod of this node that asks the DNS of the cluster.
type Pod struct {
	// UID is the pod's, Namespace its network.
	UID       string
	namespace netns.Namespace
	config    *dns.ClientConfig
	domain    string // of the cluster
}

// FindPod returns the first pod whose resolv.conf has the cluster's search path and that has
// a network namespace of its own, or nil. The calling thread is in the node's namespace.
func FindPod(root string) (*Pod, error) {
	found, err := netns.Find(root)
	if err != nil {
		return nil, err
	}
	var self unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &self); err != nil {
		return nil, fmt.Errorf("find out our own network namespace: %w", err)
	}
	for _, n := range found {
		if n.PodUID == "" || n.Inode == self.Ino {
			continue
		}
		config, err := dns.ClientConfigFromFile(filepath.Join(root, "proc", strconv.Itoa(n.PID), "root/etc/resolv.conf"))
		if err != nil {
			continue // it ended meanwhile, or has none, as the sandbox of the pod
		}
		for _, search := range config.Search {
			if domain, ok := strings.CutPrefix(search, "svc."); ok {
				return &Pod{UID: n.PodUID, namespace: n, config: config, domain: domain}, nil
			}
		}
	}
	return nil, nil
}

// How long an answer is waited for. A resolver waits 5 s before it asks again.
const (
	insideTimeout  = 2 * time.Second
	outsideTimeout = 5 * time.Second
	pairTimeout    = time.Second
)

// How many lookups of A and AAAA are made, and after how many that fail no more.
const (
	pairs         = 10
	enoughHalves  = 3
	askedServers  = 2 // those that a resolver asks first
	smallestReply = 12
)

// An Asked is what a server answered, and from where the queries about Inside and Outside
// were sent.
type Asked struct {
	advice.Answers
	From []netip.AddrPort
}

// Ask asks the pod's DNS servers from its network namespace: a name of the cluster over UDP
// and TCP, and a name outside of it. Name is that pod in the answers.
func (p *Pod) Ask(ctx context.Context, name, outside string) ([]Asked, error) {
	ns, err := p.namespace.Open()
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of pod %s: %w", name, err)
	}
	defer ns.Close()
	var list []Asked
	err = ns.Do(func() error {
		for _, s := range p.config.Servers[:min(len(p.config.Servers), askedServers)] {
			server, err := netip.ParseAddr(s)
			if err != nil {
				return fmt.Errorf("pod %s has the DNS server %q, which is no address", name, s)
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			a := Asked{Answers: advice.Answers{Pod: name, Server: server, Search: p.config.Search, NDots: p.config.Ndots}}
			a.ask(ctx, "kubernetes.default.svc."+dns.Fqdn(p.domain), dns.Fqdn(outside))
			list = append(list, a)
		}
		return nil
	})
	return list, err
}

// ask runs on a thread in the pod's namespace, one query after the other. It gives up early
// where nothing is answered.
func (a *Asked) ask(ctx context.Context, inside, outside string) {
	a.Inside = a.exchange(ctx, "udp", inside, insideTimeout)
	a.InsideTCP = a.exchange(ctx, "tcp", inside, insideTimeout)
	if a.Inside.Rcode == "" {
		return
	}
	for a.Pairs < pairs && a.HalfPairs < enoughHalves && ctx.Err() == nil {
		answered, err := a.pair(inside)
		if err != nil {
			break
		}
		a.Pairs++
		if answered == 1 {
			a.HalfPairs++
		}
	}
	a.Outside = a.exchange(ctx, "udp", outside, outsideTimeout)
	if a.Outside.Rcode != "" && len(a.Search) > 0 {
		a.Expanded = a.exchange(ctx, "udp", outside+dns.Fqdn(a.Search[0]), insideTimeout)
	}
}

// exchange asks for an A record once.
func (a *Asked) exchange(ctx context.Context, transport, name string, timeout time.Duration) advice.Answer {
	answer := advice.Answer{Name: name}
	query := new(dns.Msg).SetQuestion(name, dns.TypeA)
	client := dns.Client{Net: transport, Timeout: timeout}
	began := time.Now()
	conn, err := client.DialContext(ctx, netip.AddrPortFrom(a.Server, 53).String())
	if err == nil {
		defer conn.Close()
		if local, err := netip.ParseAddrPort(conn.LocalAddr().String()); err == nil {
			a.From = append(a.From, local)
		}
		var response *dns.Msg
		if response, _, err = client.ExchangeWithConnContext(ctx, query, conn); err == nil {
			answer.Rcode, answer.Truncated = dns.RcodeToString[response.Rcode], response.Truncated
		}
	}
	answer.Took = time.Since(began)
	if netErr := net.Error(nil); errors.As(err, &netErr) && netErr.Timeout() {
		answer.Error = fmt.Sprintf("no answer within %s", timeout)
	} else if err != nil {
		answer.Error = err.Error()
	}
	return answer
}

// pair asks A and AAAA at once from one socket, and returns how many were answered.
func (a *Asked) pair(name string) (answered int, err error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.Server, 53)))
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	waiting := map[uint16]bool{}
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		query := new(dns.Msg).SetQuestion(name, qtype)
		wire, err := query.Pack()
		if err != nil {
			return 0, err
		}
		if _, err := conn.Write(wire); err != nil {
			return 0, err
		}
		waiting[query.Id] = true
	}
	if err := conn.SetReadDeadline(time.Now().Add(pairTimeout)); err != nil {
		return 0, err
	}
	buffer := make([]byte, dns.MaxMsgSize)
	for sent := len(waiting); len(waiting) > 0; answered = sent - len(waiting) {
		n, err := conn.Read(buffer)
		if err != nil {
			return answered, nil // what is missing now is lost
		}
		if n >= smallestReply {
			delete(waiting, uint16(buffer[0])<<8|uint16(buffer[1]))
		}
	}
	return answered, nil
}
