package checks

import (
	"sync"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

const (
	// proofUDP is how long an answered question shows that a UDP endpoint answers: a
	// little longer than the time between two lease probes on a calm node.
	proofUDP = 1500 * time.Millisecond

	// proofTCP is how long a check of a TCP endpoint does while no connection waits
	// there. All that is behind the listener is asked over UDP as well.
	proofTCP = 30 * time.Second
)

// proofs remember when each endpoint was shown to answer. The zero value is ready.
type proofs struct {
	mu       sync.Mutex
	answered map[iptables.Endpoint]time.Time
}

// note notes that an endpoint answered, or did not.
func (p *proofs) note(e iptables.Endpoint, answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !answered {
		delete(p.answered, e)
		return
	}
	if p.answered == nil {
		p.answered = map[iptables.Endpoint]time.Time{}
	}
	p.answered[e] = time.Now()
}

// since is when an endpoint answered last, the zero time if it did not.
func (p *proofs) since(e iptables.Endpoint) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answered[e]
}

// IsDue implements [reconcile.Checker]. An endpoint with several sockets is always
// due over UDP, since an answer shows only that one of them is read.
func (c *Checker) IsDue(e iptables.Endpoint) bool {
	age := time.Since(c.proofs.since(e))
	if e.Proto == iptables.UDP {
		return c.Sockets > 1 || age >= proofUDP
	}
	return age >= proofTCP || c.Waiting != nil && c.Waiting(e)
}
