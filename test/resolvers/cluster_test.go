//go:build privileged

package resolvers

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/labtest"
)

const zone = "cluster.local."

// records are the names that exist, with their records: those of the cluster, and external ones.
var records = map[string][]string{
	"svc." + zone:                 nil,
	"default.svc." + zone:         nil,
	"team.svc." + zone:            nil,
	"web.default.svc." + zone:     {"5 IN A 10.96.0.7"},
	"shop.team.svc." + zone:       {"5 IN A 10.96.0.8", "5 IN AAAA fd00:96::8"},
	"outside.default.svc." + zone: {"5 IN CNAME beyond.example.com."},
	"db.default.svc." + zone:      {"5 IN A 10.244.0.30"},
	"zero.db.default.svc." + zone: {"5 IN A 10.244.0.30"},
	"cart.default.svc." + zone:    {"5 IN A 10.96.0.10"},
	"both.example.com.":           {"300 IN A 192.0.2.1", "300 IN AAAA 2001:db8::1"},
	"target.example.com.":         {"300 IN A 192.0.2.11", "300 IN AAAA 2001:db8::11"},
	"target4.example.com.":        {"300 IN A 192.0.2.14"},
	"beyond.example.com.":         {"300 IN A 192.0.2.21", "300 IN AAAA 2001:db8::21"},
	"four.example.com.":           {"300 IN A 192.0.2.4"},
	"six.example.com.":            {"300 IN AAAA 2001:db8::6"},
	"alias.example.com.":          {"300 IN CNAME target.example.com."},
	"alias4.example.com.":         {"300 IN CNAME target4.example.com."},
	"db.floor.":                   {"300 IN A 192.0.2.99"},
	"host.floor.":                 {"300 IN A 192.0.2.99"},
	"host.floor.corp.test.":       {"300 IN A 192.0.2.31"},
	"absolute.example.com.":       {"300 IN A 192.0.2.3"},
}

// answer is what kube-dns and the resolvers behind it say.
func answer(w dns.ResponseWriter, r *dns.Msg) {
	q := r.Question[0]
	name := strings.ToLower(q.Name)
	m := new(dns.Msg).SetReply(r)
	m.RecursionAvailable = true
	for {
		texts, exists := records[name]
		next := ""
		for _, text := range texts {
			rr, err := dns.NewRR(name + " " + text)
			if err != nil {
				panic(err)
			}
			if alias, ok := rr.(*dns.CNAME); ok {
				next = alias.Target
			} else if rr.Header().Rrtype != q.Qtype {
				continue
			}
			m.Answer = append(m.Answer, rr)
		}
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		if next == "" {
			break
		}
		name = next
	}
	if len(m.Answer) == 0 {
		soa := ". 30 IN SOA ns. admin. 1 7200 1800 86400 30"
		if dns.IsSubDomain(zone, name) {
			soa = zone + " 5 IN SOA ns.dns." + zone + " hostmaster." + zone + " 1 7200 1800 86400 5"
		}
		rr, err := dns.NewRR(soa)
		if err != nil {
			panic(err)
		}
		m.Ns = []dns.RR{rr}
	}
	_ = w.WriteMsg(m) // whoever asked may have stopped
}

const (
	relayed   = "127.0.0.1:53" // where clients ask
	listener  = "127.0.0.10"   // where trackless answers
	upstream  = "127.0.0.20:53"
	forwarded = "    forward . " + upstream + "\n"
)

// corefile is that of a node; directives stand above the cache of the cluster's zone.
func corefile(directives string) string {
	return fmt.Sprintf(`%[1]s:53 {
    errors
    bind %[2]s
%[3]s
%[4]s}
.:53 {
    errors
    bind %[2]s
    cache 30
%[4]s}
`, zone, listener, directives, forwarded)
}

// A cluster is trackless in front of a kube-dns, in a network namespace of its own. Clients ask a
// relay, which records their questions.
type cluster struct {
	*lab.Namespace

	mu        sync.Mutex
	questions []dns.Question
}

func newCluster(t *testing.T, directives string) *cluster {
	t.Helper()
	labtest.Require(t)
	ns, err := lab.NewNamespace("cluster")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	c := &cluster{Namespace: ns}
	startKubeDNS(t, ns)
	server, err := ns.StartServer("trackless", labtest.Program(t), corefile(directives))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	address := netip.MustParseAddr(listener)
	testwait.Until(t, time.Minute, "trackless answers", func() error {
		_, err := ns.Query(t.Context(), lab.UDP, address, new(dns.Msg).SetQuestion("svc."+zone, dns.TypeA))
		return err
	})
	var relays sync.WaitGroup
	front := listen(t, c.Namespace, relayed)
	relays.Go(func() { c.relay(t, &relays, front) })
	t.Cleanup(func() {
		_ = front.Close()
		relays.Wait()
	})
	return c
}

// startKubeDNS answers at the address of the upstream.
func startKubeDNS(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	server := &dns.Server{PacketConn: listen(t, ns, upstream), Handler: dns.HandlerFunc(answer)}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown() })
}

func listen(t *testing.T, ns *lab.Namespace, address string) net.PacketConn {
	t.Helper()
	var conn net.PacketConn
	if err := ns.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// relay passes queries on to trackless and its responses back, as they are.
func (c *cluster) relay(t *testing.T, relays *sync.WaitGroup, front net.PacketConn) {
	for {
		buffer := make([]byte, dns.MaxMsgSize)
		n, client, err := front.ReadFrom(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		query := new(dns.Msg)
		if err == nil {
			err = query.Unpack(buffer[:n])
		}
		if err != nil || len(query.Question) != 1 {
			t.Errorf("a query that is none: %v, %v", query, err)
			return
		}
		c.mu.Lock()
		c.questions = append(c.questions, query.Question[0])
		c.mu.Unlock()
		relays.Go(func() {
			response, err := c.exchange(buffer[:n])
			if err == nil {
				_, err = front.WriteTo(response, client)
			}
			if err != nil && !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v: %v", query.Question, err)
			}
		})
	}
}

func (c *cluster) exchange(query []byte) (response []byte, err error) {
	var conn net.Conn
	if err := c.Do(func() (err error) {
		conn, err = net.Dial("udp", net.JoinHostPort(listener, "53"))
		return err
	}); err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	buffer := make([]byte, dns.MaxMsgSize)
	n, err := conn.Read(buffer)
	return buffer[:n], err
}

// asked are the questions of clients for a name, or for it below a domain of the search path.
func (c *cluster) asked(base string) []string {
	base = strings.TrimSuffix(base, ".") + "."
	c.mu.Lock()
	defer c.mu.Unlock()
	var texts []string
	for _, q := range c.questions {
		if strings.HasPrefix(strings.ToLower(q.Name), base) {
			texts = append(texts, q.Name+" "+dns.TypeToString[q.Qtype])
		}
	}
	slices.Sort(texts)
	return texts
}
