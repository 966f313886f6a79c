// Package load sends a bounded, seeded load of DNS queries through a lab node and
// says what became of each query.
package load

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/kubeproxy"
)

const (
	// MaxQueries bounds a load.
	MaxQueries = 1_000_000
)

// A Load is a bounded number of queries, the same ones in the same order for
// the same Load on a node of the same size: the seed decides who asks what
// over which protocol and from which source port. Every query is a first and
// only attempt from a source port of its own.
type Load struct {
	// Queries is how many there are, 20,000 if 0, at most MaxQueries.
	Queries int

	// Seed makes the load; any value is as good as any other.
	Seed uint64

	// Rate is the number of queries a second, 2,000 if 0, whether or not
	// earlier ones were answered.
	Rate int

	// Timeout is how long each query waits for its answer, 5 s if 0.
	Timeout time.Duration

	// Outstanding is how many queries may be on their way at once, 100 if 0: less
	// than what fits into the receive buffer of one UDP socket. A load that
	// reaches it waits, so that what is lost was not lost merely because the
	// machine was busy. A query of more than a second no longer counts.
	Outstanding int

	// Targets are the server addresses, at most one of each family; empty
	// means the cluster DNS addresses of the node. Port 53.
	Targets []netip.Addr

	// Mix is the composition, DefaultMix if nil.
	Mix *Mix

	// Progress, if not nil, is called several times a second with the number
	// of queries that are over.
	Progress func(done int)
}

// A Mix is the composition of a load, in shares of its queries from 0 to 1.
// The rest goes over UDP and IPv4, and comes from the pods in equal parts.
type Mix struct {
	TCP, IPv6, FromNode float64

	// Unique is the share of names that are asked only once, Absent that of
	// names that do not exist. The rest are repeated names of Services, a few
	// of them most of the time.
	Unique, Absent float64
}

// DefaultMix is like the DNS of a node that runs ordinary services.
var DefaultMix = Mix{TCP: 0.05, IPv6: 0.3, FromNode: 0.1, Unique: 0.1, Absent: 0.15}

// A class says what can be expected of a name in a cache.
type class uint8

const (
	common class = iota // exists, is asked again and again
	absent              // does not exist, is asked again and again
	unique              // exists, is asked once
)

const (
	commonNames = 200
	absentNames = 50

	// FromNode is the origin of queries that the node itself sends.
	FromNode = -1
)

// plannedQuery is one query of a load.
type plannedQuery struct {
	origin   int // index of the pod, or fromNode
	protocol lab.Protocol
	ipv6     bool
	port     uint16 // source port
	class    class
	number   int // of the name within its class
	qtype    uint16
}

func (q plannedQuery) name() lab.Name {
	switch q.class {
	case absent:
		return lab.AbsentName(q.number)
	case unique:
		return lab.HostName(commonNames + q.number)
	}
	return lab.HostName(q.number)
}

// WithDefaults checks the load and fills in what was left out.
func (l Load) WithDefaults(node *lab.Node) (Load, error) {
	if l.Queries == 0 {
		l.Queries = 20_000
	}
	if l.Rate == 0 {
		l.Rate = 2_000
	}
	if l.Timeout == 0 {
		l.Timeout = lab.DefaultTimeout
	}
	if l.Outstanding == 0 {
		l.Outstanding = 100
	}
	if l.Mix == nil {
		l.Mix = &DefaultMix
	}
	if len(l.Targets) == 0 {
		l.Targets = node.ClusterDNS()
	}
	switch {
	case l.Queries < 1 || l.Queries > MaxQueries:
		return l, fmt.Errorf("a load of %d queries: from 1 to %d are possible", l.Queries, MaxQueries)
	case l.Rate < 1:
		return l, fmt.Errorf("a load of %d queries a second: it must be positive", l.Rate)
	case l.Outstanding < 1:
		return l, fmt.Errorf("a load with %d queries on their way: it must be positive", l.Outstanding)
	case !kubeproxy.Address(l.Targets, false).IsValid() && !kubeproxy.Address(l.Targets, true).IsValid():
		return l, errors.New("a load without a target address")
	}
	for _, share := range []float64{l.Mix.TCP, l.Mix.IPv6, l.Mix.FromNode, l.Mix.Unique + l.Mix.Absent} {
		if share < 0 || share > 1 {
			return l, fmt.Errorf("a load with a share of %g: shares lie between 0 and 1", share)
		}
	}
	return l, nil
}

// plan draws the queries of a load with defaults filled in.
func (l Load) plan(pods int) []plannedQuery {
	random := rand.New(rand.NewPCG(l.Seed, 0))
	popular := rand.NewZipf(random, 1.1, 4, commonNames-1)
	ipv4, ipv6 := kubeproxy.Address(l.Targets, false).IsValid(), kubeproxy.Address(l.Targets, true).IsValid()
	ports := make(map[portStream]*PortWalk)
	queries := make([]plannedQuery, l.Queries)
	uniques := 0
	for i := range queries {
		q := &queries[i]
		q.origin = FromNode
		if random.Float64() >= l.Mix.FromNode {
			q.origin = random.IntN(pods)
		}
		q.protocol = lab.UDP
		if random.Float64() < l.Mix.TCP {
			q.protocol = lab.TCP
		}
		q.ipv6 = random.Float64() < l.Mix.IPv6 && ipv6 || !ipv4
		q.qtype = dns.TypeA
		if random.IntN(2) == 0 {
			q.qtype = dns.TypeAAAA
		}
		switch draw := random.Float64(); {
		case draw < l.Mix.Unique:
			q.class, q.number = unique, uniques
			uniques++
		case draw < l.Mix.Unique+l.Mix.Absent:
			q.class, q.number = absent, random.IntN(absentNames)
		default:
			q.class, q.number = common, int(popular.Uint64())
		}
		stream := portStream{q.origin, q.protocol, q.ipv6}
		if ports[stream] == nil {
			ports[stream] = NewPortWalk(random, stream.origin)
		}
		q.port = ports[stream].Next()
	}
	return queries
}

// warmPlan asks once for every repeated name, for both types, from one pod.
func warmPlan(load Load) []plannedQuery {
	ipv6 := !kubeproxy.Address(load.Targets, false).IsValid()
	var queries []plannedQuery
	for _, names := range []struct {
		class class
		count int
	}{{common, commonNames}, {absent, absentNames}} {
		for number := range names.count {
			for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
				queries = append(queries, plannedQuery{
					protocol: lab.UDP, ipv6: ipv6, class: names.class, number: number, qtype: qtype,
				})
			}
		}
	}
	return queries
}

// A portStream is a client address and protocol: source ports are used up
// separately in each.
type portStream struct {
	origin   int
	protocol lab.Protocol
	ipv6     bool
}

// A PortWalk visits all source ports of a stream in random order before it
// uses one again.
type PortWalk struct {
	ports []uint16
	at    int
}

// NewPortWalk takes the pods' ports from Linux's default ephemeral range
// (ip_local_port_range), 28,232 of them, and the node's own from below it,
// where no other process of the node binds.
func NewPortWalk(random *rand.Rand, origin int) *PortWalk {
	first, count := 32768, 28232
	if origin == FromNode {
		first, count = 10240, 32768-10240
	}
	walk := &PortWalk{ports: make([]uint16, count)}
	for i, offset := range random.Perm(count) {
		walk.ports[i] = uint16(first + offset)
	}
	return walk
}

// Next returns the next port.
func (w *PortWalk) Next() uint16 {
	port := w.ports[w.at]
	w.at = (w.at + 1) % len(w.ports)
	return port
}
