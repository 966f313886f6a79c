package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/agent/tuple"
)

// Query is one that a server block passes on.
type Query struct {
	Block Block
	W     dns.ResponseWriter
	R     *dns.Msg
	TCP   bool // it came over TCP

	// Asked is told whose answer is written in place of that of the block's upstreams.
	Asked func(service netip.AddrPort)

	// Pass passes it, or another one in its place, to what is behind the block's cache.
	Pass func(context.Context, dns.ResponseWriter, *dns.Msg) (rcode int, err error)
}

func (q Query) pass(ctx context.Context) (int, error) { return q.Pass(ctx, q.W, q.R) }

const (
	// clusterTry is how long one try to ask the cluster's DNS may take, and
	// clusterTimeout all of them: clients give up after five seconds.
	clusterTry     = 500 * time.Millisecond
	clusterTimeout = 4 * time.Second
)

var errNobodyElse = errors.New("nobody else answers at this address")

// askCluster asks as a client does whose queries are given back, so that
// kube-proxy leads us to kube-dns. What comes back to ourselves, since rules of
// another instance bring it here, is dropped and tried again from another port.
func (m *Monitor) askCluster(ctx context.Context, q Query, l *state) error {
	_, server, _ := tuple.Of(q.W)
	service, ok := l.instead[server.Addr()]
	if !ok { // a refresh, which is nobody's query
		for _, service = range l.instead {
			break
		}
	}
	if !service.IsValid() {
		return errNobodyElse
	}
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	network := "udp"
	err := errNobodyElse
	for ctx.Err() == nil {
		var answer *dns.Msg
		answer, err = m.askService(ctx, network, service, q.R)
		switch {
		case err == nil && answer.Truncated && network == "udp" && q.TCP:
			network = "tcp"
		case err == nil:
			answer.Id = q.R.Id
			if q.Asked != nil {
				q.Asked(service)
			}
			return q.W.WriteMsg(answer)
		default:
			// At once only if there was a wait.
			pause := time.NewTimer(clusterTry / 10)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		}
	}
	return fmt.Errorf("ask %s: %w", service, err)
}

// IsOurs reports whether a query is one that we ask of the cluster.
func (m *Monitor) IsOurs(client netip.AddrPort) bool {
	if m.asking.Load() == 0 {
		return false
	}
	_, ours := m.ours.Load(client)
	return ours
}

// Asks notes that we ask the cluster from a transport address, until end is called.
func (m *Monitor) Asks(from netip.AddrPort) (end func()) {
	m.ours.Store(from, true)
	m.asking.Add(1)
	return func() {
		m.ours.Delete(from)
		m.asking.Add(-1)
	}
}

// askService asks once.
func (m *Monitor) askService(ctx context.Context, network string, service netip.AddrPort, r *dns.Msg) (*dns.Msg, error) {
	dialer := net.Dialer{Timeout: clusterTry}
	conn, err := dialer.DialContext(ctx, network, service.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if local, ok := conn.LocalAddr().(*net.UDPAddr); ok {
		ours := sockets.Unmap(local.AddrPort())
		defer m.Asks(ours)()
	}
	query := r.Copy()
	query.Id = dns.Id()
	client := dns.Client{Net: network, Timeout: clusterTry}
	answer, _, err := client.ExchangeWithConnContext(ctx, query, &dns.Conn{Conn: conn})
	if err != nil {
		return nil, err
	}
	if !matches(r, answer) {
		return nil, fmt.Errorf("%s answers another question", service)
	}
	return answer, nil
}

// matches reports whether a message answers the question of a query.
func matches(r, answer *dns.Msg) bool {
	if !answer.Response || len(answer.Question) != 1 || len(r.Question) == 0 {
		return false
	}
	asked, got := r.Question[0], answer.Question[0]
	return strings.EqualFold(got.Name, dns.Name(asked.Name).String()) && got.Qtype == asked.Qtype && got.Qclass == asked.Qclass
}
