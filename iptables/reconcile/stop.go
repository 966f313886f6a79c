package reconcile

import (
	"errors"
	"time"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/reconcile/lease"
)

const (
	// queued is how long a query that came before the query rules went may
	// wait in the queue of its socket, uncounted.
	queued = 50 * time.Millisecond

	// idle is how long a TCP connection must be without a query to be taken
	// for idle at the stop, and linger bounds the wait for that. Those with
	// queries are closed behind an answer, see Released.
	idle   = 500 * time.Millisecond
	linger = 2 * time.Second
)

// Detach takes the query rules away for good and waits, bounded, until the queries
// that came before have been answered. Responses, and TCP connections that our
// listeners hold, stay untracked.
func (r *Reconciler) Detach() error {
	r.mu.Lock()
	err := r.leave()
	r.mu.Unlock()
	if !r.undrained.Load() {
		r.undrained.Store(!r.drain())
	}
	return err
}

// leave leaves to the cluster's DNS what is attached. In every state another
// instance's rules may bring queries to our listeners, and clients may ask over
// connections to them.
func (r *Reconciler) leave() error {
	if r.leaving {
		return nil
	}
	r.leaving = true
	listen := r.listen()
	var err error
	if r.next != nil {
		err = r.abandon()
	}
	if r.current != nil {
		r.retire(r.current)
	}
	var attached bool
	r.leases.Tell(func(m *lease.Machine) { attached = m.Drain(time.Now()) })
	if attached {
		err = errors.Join(err, r.rules.detach(r.Backend(), r.listen()))
	}
	return errors.Join(err, r.yield(listen))
}

// yield hands what another instance's rules bring here over to that instance.
func (r *Reconciler) yield(listen []iptables.Endpoint) error {
	if len(listen) == 0 {
		return nil
	}
	claims, err := r.cfg.Kernel.Claims()
	if err != nil {
		return err
	}
	if listen = claims.Serving(listen); len(listen) == 0 {
		return nil
	}
	return r.cfg.Yield(listen)
}

// drain waits until all queries that came have been answered, and until no
// client is about to send another one over a connection that we hold. It reports
// false if it had to give up.
func (r *Reconciler) drain() bool {
	listen := r.listen()
	began := time.Now()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	last := r.cfg.Served(listen)
	lastOverTCP := began
	for {
		now := <-poll.C
		served := r.cfg.Served(listen)
		if served.OverTCP != last.OverTCP {
			last, lastOverTCP = served, now
		}
		waiting := served.Arrived - served.Answered
		held := served.Connections > 0 && now.Sub(lastOverTCP) < idle && now.Sub(began) < linger
		switch passed := now.Sub(began); {
		case passed >= queued && waiting == 0 && !held:
			return true
		case passed >= r.cfg.Drain:
			r.cfg.Log.Warningf("%d queries were still unanswered %s after the query rules went", waiting, r.cfg.Drain)
			return false
		}
	}
}

// Close takes the rules and then the addresses away; after it the Reconciler is of
// no more use. Detach comes before it, and the listeners stop between the two.
// What another instance on this node asks for stays.
func (r *Reconciler) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	b := r.Backend()
	var err error
	if r.next != nil {
		err = r.abandon()
	}
	if s := r.current; s != nil {
		r.retire(s)
		err = errors.Join(err, s.checker.Close(), r.cfg.Kernel.Purge(s.plan.Listen))
	}
	r.current = nil
	r.publish()
	r.leases.Tell(func(m *lease.Machine) { m.Stop(time.Now()) })
	return errors.Join(err, r.rules.remove(b))
}
