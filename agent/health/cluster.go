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

// Query is a query that a server block passes on.
type Query struct {
	Block Block
	W     dns.ResponseWriter
	R     *dns.Msg
	TCP   bool // it arrived over TCP

	// Asked, if set, is called with the Service that answered in place of the block's
	// upstreams.
	Asked func(service netip.AddrPort)

	// Pass passes this or another query to the plugins below the block's cache.
	Pass func(context.Context, dns.ResponseWriter, *dns.Msg) (rcode int, err error)
}

func (q Query) pass(ctx context.Context) (int, error) { return q.Pass(ctx, q.W, q.R) }

const (
	// clusterTry bounds one try to ask the cluster's DNS, clusterTimeout all of them:
	// clients give up after five seconds.
	clusterTry     = 500 * time.Millisecond
	clusterTimeout = 4 * time.Second
)

var errNoService = errors.New("no Service of the cluster's DNS answers for this address")

// askCluster asks as a client whose queries have failed over: kube-proxy takes the query to
// kube-dns. Rules of another instance may bring the query back to us. It is dropped then,
// and the next try uses another port.
func (m *Monitor) askCluster(ctx context.Context, q Query, st *state) error {
	_, server, _ := tuple.Of(q.W)
	service, ok := st.services[server.Addr()]
	if !ok { // a refresh has no client
		for _, service = range st.services {
			break
		}
	}
	if !service.IsValid() {
		return errNoService
	}
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	network := "udp"
	err := errNoService
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
			// An error may come at once.
			pause := time.NewTimer(clusterTry / 10)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		}
	}
	return fmt.Errorf("ask %s: %w", service, err)
}

// IsOurs reports whether a client is this process, which asks the cluster.
func (m *Monitor) IsOurs(client netip.AddrPort) bool {
	if m.asking.Load() == 0 {
		return false
	}
	_, ours := m.ours.Load(client)
	return ours
}

// Asks records that we ask the cluster from a transport address, until end is called.
func (m *Monitor) Asks(from netip.AddrPort) (end func()) {
	m.ours.Store(from, true)
	m.asking.Add(1)
	return func() {
		m.ours.Delete(from)
		m.asking.Add(-1)
	}
}

// askService asks a Service once.
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
		return nil, fmt.Errorf("ask %s for %s: the answer is for another question", service, r.Question[0].Name)
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
