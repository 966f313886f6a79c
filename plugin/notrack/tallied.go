package notrack

import (
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/agent"
	"github.com/trackless-dns/trackless/agent/tally"
	"github.com/trackless-dns/trackless/agent/tuple"
)

// tallied counts the queries of all loads for `trackless dns top`. It implements
// querymetrics.Observer.
type tallied struct{ agent *agent.Agent }

// Watches implements querymetrics.Observer.
func (t tallied) Watches() bool { return t.agent.Tally.Running() }

// Answered implements querymetrics.Observer.
func (t tallied) Answered(w dns.ResponseWriter, q dns.Question, rcode int) {
	client, _, proto := tuple.Of(w)
	t.agent.Tally.Answered(&tally.Query{Client: client.Addr(), Name: q.Name, Type: q.Qtype, Rcode: rcode, TCP: proto == unix.IPPROTO_TCP})
}
