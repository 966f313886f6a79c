package notrack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/sockets"
	"github.com/trackless-dns/trackless/agent/tuple"
)

// miss is a query that a server block passes on.
type miss struct {
	block *dnsserver.Config
	next  plugin.Handler
	w     dns.ResponseWriter
	r     *dns.Msg
}

func (q miss) pass(ctx context.Context) (int, error) {
	return plugin.NextOrFailure(directive, q.next, ctx, q.w, q.r)
}

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
func (m *misses) askCluster(ctx context.Context, q miss, l *loss) error {
	_, server, _ := tuple.Of(q.w)
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
	state := request.Request{W: q.w, Req: q.r}
	network := "udp"
	err := errNobodyElse
	for ctx.Err() == nil {
		var answer *dns.Msg
		answer, err = m.askService(ctx, network, service, q.r)
		switch {
		case err == nil && answer.Truncated && network == "udp" && state.Proto() == "tcp":
			network = "tcp"
		case err == nil:
			answer.Id = q.r.Id
			metadata.SetValueFunc(ctx, "upstream/address", service.String)
			return q.w.WriteMsg(answer)
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

// isOurs reports whether a query is one that we ask of the cluster.
func (m *misses) isOurs(client netip.AddrPort) bool {
	if m.asking.Load() == 0 {
		return false
	}
	_, ours := m.ours.Load(client)
	return ours
}

// askService asks once.
func (m *misses) askService(ctx context.Context, network string, service netip.AddrPort, r *dns.Msg) (*dns.Msg, error) {
	dialer := net.Dialer{Timeout: clusterTry}
	conn, err := dialer.DialContext(ctx, network, service.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if local, ok := conn.LocalAddr().(*net.UDPAddr); ok {
		ours := sockets.Unmap(local.AddrPort())
		m.ours.Store(ours, true)
		m.asking.Add(1)
		defer m.ours.Delete(ours)
		defer m.asking.Add(-1)
	}
	query := r.Copy()
	query.Id = dns.Id()
	client := dns.Client{Net: network, Timeout: clusterTry}
	answer, _, err := client.ExchangeWithConnContext(ctx, query, &dns.Conn{Conn: conn})
	if err != nil {
		return nil, err
	}
	if state := (request.Request{Req: r}); !state.Match(answer) {
		return nil, fmt.Errorf("%s answers another question", service)
	}
	return answer, nil
}
