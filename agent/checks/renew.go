package checks

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// renewTimeout bounds one try of a lease probe: another instance does not
	// answer it, and other ports are tried. Only time counts in which this process ran.
	renewTimeout = 100 * time.Millisecond
)

// probe is a lease probe under way.
type probe struct {
	*exchange
	addr netip.Addr
}

// Renew implements [reconcile.Checker]. On a calm node all answers come at once, and
// one goroutine sends all probes and reads all answers: goroutines that wake each
// other are most of what a probe costs.
func (c *Checker) Renew(ctx context.Context, addrs []netip.Addr, result func(netip.Addr, time.Time, error)) {
	var probes, late []probe
	for _, a := range addrs {
		p, err := c.sendProbe(a)
		if err != nil {
			result(a, time.Time{}, err)
			continue
		}
		probes = append(probes, p)
	}
	receive := func(p probe) (*dns.Msg, time.Time, error) { return p.receive(ctx) }
	if c.alarm.set(copyInterval, probes) {
		defer c.alarm.stop()
		receive = func(p probe) (*dns.Msg, time.Time, error) { return p.read() }
	}
	for _, p := range probes {
		answer, at, err := receive(p)
		if err == nil {
			_, err = c.Identity.AnsweredBy(p.query, answer)
		}
		if err != nil {
			late = append(late, p)
			continue
		}
		c.renewed(p)
		result(p.addr, at, nil)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, p := range late {
		wg.Go(func() {
			at, err := c.renewLate(ctx, p)
			if err == nil {
				c.renewed(p)
			} else {
				c.proofs.note(p.e, false)
			}
			mu.Lock()
			defer mu.Unlock()
			result(p.addr, at, err)
		})
	}
	wg.Wait()
}

// Void implements [reconcile.Checker].
func (c *Checker) Void() { c.Identity.Void() }

// sendProbe sends a lease probe from the port that was answered last.
func (c *Checker) sendProbe(a netip.Addr) (probe, error) {
	e, ok := c.leaseEndpoint(a)
	if !ok {
		return probe{}, fmt.Errorf("%s has no listener for plain DNS over UDP, which a lease needs; use `lease off`", a)
	}
	pool := c.pools[a]
	x, err := c.sendLease(e, pool.lease[pool.last])
	return probe{x, a}, err
}

// renewed notes that a lease probe was answered, which proves that the endpoint
// answers if it has no other socket.
func (c *Checker) renewed(p probe) {
	if c.Sockets <= 1 {
		c.proofs.note(p.e, true)
	}
}

// renewLate goes on with a lease probe to which no answer has come at once. Where
// another instance comes or goes the port that was answered last may lead elsewhere.
// The others are tried all at once then: one after the other could outlast the lease.
func (c *Checker) renewLate(ctx context.Context, p probe) (at time.Time, err error) {
	first, cancel := c.patienceOf(ctx, renewTimeout, renewTimeout)
	defer cancel()
	if at, err = p.awaitLease(first); err == nil || ctx.Err() != nil {
		return at, err
	}
	all, cancel := c.patience(ctx)
	defer cancel()
	type renewed struct {
		port int
		at   time.Time
	}
	pool := c.pools[p.addr]
	answered := make(chan renewed, leasePool)
	var wg sync.WaitGroup
	for port := range leasePool {
		wg.Go(func() {
			x, err := c.sendLease(p.e, pool.lease[port])
			if err != nil {
				return
			}
			if at, err := x.awaitLease(all); err == nil {
				answered <- renewed{port, at}
				cancel()
			}
		})
	}
	wg.Wait()
	select {
	case r := <-answered:
		pool.last = r.port
		return r.at, nil
	default:
		return at, err
	}
}
