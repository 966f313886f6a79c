package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Addresses puts the plan's addresses on this node; package hostaddr does.
type Addresses interface {
	// Ensure adds what is missing, or changes nothing and fails.
	Ensure([]netip.Addr) error
	// Release removes those of ours that are not in keep.
	Release(keep []netip.Addr) error
	// Remove releases all of them, and the link if it is ours.
	Remove() error
}

// Checker finds out whether this process, and nobody else, answers.
type Checker interface {
	// Reserve binds the transport addresses from which checks of the given
	// listen addresses are sent, and keeps them until Close. The addresses
	// are on this node by then.
	Reserve([]netip.Addr) ([]Check, error)
	// Check asks one endpoint once. It returns nil if this process answered.
	Check(context.Context, Endpoint) error
	// Close gives the transport addresses back.
	Close() error
}

// State is where the contract stands.
type State uint8

// The state machine runs Detached, Attached, Draining, Detached.
const (
	// Detached: queries are tracked and go where they would go without us.
	Detached State = iota
	// Attached: queries to the listen endpoints come here untracked.
	Attached
	// Draining: no new query comes here; late responses stay untracked.
	Draining
)

// String gives the state's name for logs.
func (s State) String() string {
	switch s {
	case Attached:
		return "attached"
	case Draining:
		return "draining"
	}
	return "detached"
}

// Logger is what the keeper needs of a log: quiet when all is well.
type Logger interface {
	Infof(format string, args ...any)
	Warningf(format string, args ...any)
}

// Config is what a Keeper works with. Backend, Addresses and Log are required.
type Config struct {
	Backend   Backend
	Addresses Addresses
	Log       Logger

	// Pending returns the number of queries being answered at the moment;
	// nil means that none ever is. The drain ends when it is zero.
	Pending func() int64

	// Drain bounds the wait for Pending; zero means 5 s, CoreDNS's longest
	// time with an upstream.
	Drain time.Duration
}

// pollInterval is the time between two rounds of checks while detached: rules
// are due within a second of the listeners answering.
const pollInterval = 100 * time.Millisecond

// complainAfter is how long the listeners may stay silent before the log says
// so. A start takes well under a second.
const complainAfter = 5 * time.Second

// A Keeper owns the rules and addresses of one process. Its methods are safe
// for concurrent use; a method that changes the kernel waits for the one
// before it.
//
// A change of plan has two halves, since the addresses must be there before
// the listeners and the rules only after them: Prepare, then Commit, or
// Rollback if the listeners could not be opened.
type Keeper struct {
	cfg Config

	// attached is what Covers reads for every query.
	attached atomic.Pointer[[]netip.Addr]

	mu     sync.Mutex
	state  State
	plan   Plan // committed
	next   *change
	closed bool
}

// change is a prepared plan.
type change struct {
	plan    Plan
	checker Checker
	cancel  context.CancelFunc // of its commit
	done    chan struct{}      // closed when its commit has ended
}

// NewKeeper returns a Keeper that holds nothing yet.
func NewKeeper(cfg Config) *Keeper {
	if cfg.Drain == 0 {
		cfg.Drain = 5 * time.Second
	}
	if cfg.Pending == nil {
		cfg.Pending = func() int64 { return 0 }
	}
	return &Keeper{cfg: cfg}
}

// Prepare puts the plan's addresses on the node and installs everything but
// the query rules of what is new. What is attached stays so. On an error the
// node is as it was before.
func (k *Keeper) Prepare(p Plan, c Checker) error {
	if err := p.Validate(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errors.New("notrack: this process is stopping")
	}
	if len(k.plan.Listen) > 0 && p.Link != k.plan.Link {
		return fmt.Errorf("interface %s: the interface cannot change from %s without a restart", linkName(p.Link), linkName(k.plan.Link))
	}
	if k.next != nil {
		// An earlier change that was neither committed nor rolled back.
		if err := k.abandon(); err != nil {
			return err
		}
	}
	if err := k.cfg.Addresses.Ensure(p.Addresses()); err != nil {
		return err
	}
	checks, err := c.Reserve(p.Addresses())
	if err == nil {
		var both Plan
		if both, err = k.plan.Merge(p); err == nil {
			err = k.cfg.Backend.Install(both, checks)
		}
	}
	if err != nil {
		return errors.Join(err, c.Close(), k.restore())
	}
	k.next = &change{plan: p.Normalize(), checker: c}
	return nil
}

// Commit waits in the background until every listen endpoint of the prepared
// plan answers, and attaches then.
func (k *Keeper) Commit() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.next == nil || k.next.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := k.next
	n.cancel, n.done = cancel, make(chan struct{})
	go func() {
		defer close(n.done)
		defer cancel()
		k.attachWhenAnswering(ctx, n)
	}()
}

// attachWhenAnswering checks all endpoints until each has answered once, then
// attaches, trying again if the kernel refuses.
func (k *Keeper) attachWhenAnswering(ctx context.Context, n *change) {
	silent := slices.Clone(n.plan.Listen)
	complain := time.NewTimer(complainAfter)
	defer complain.Stop()
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		var last error
		silent = slices.DeleteFunc(silent, func(e Endpoint) bool {
			err := n.checker.Check(ctx, e)
			if err != nil {
				last = fmt.Errorf("%s does not answer: %w", e, err)
			}
			return err == nil
		})
		if len(silent) == 0 {
			if last = k.attach(ctx, n); last == nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-complain.C:
			k.cfg.Log.Warningf("the rules wait: %v", last)
		case <-poll.C:
		}
	}
}

// attach makes the prepared plan the committed one and untracks its queries.
// The checks have served; their rules go.
func (k *Keeper) attach(ctx context.Context, n *change) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() != nil || k.next != n {
		return nil
	}
	if err := k.cfg.Backend.Install(n.plan, nil); err != nil {
		return err
	}
	if err := k.cfg.Backend.Attach(); err != nil {
		return err
	}
	k.plan, k.next = n.plan, nil
	attached := n.plan.Addresses()
	k.state = Attached
	k.attached.Store(&attached)
	err := errors.Join(n.checker.Close(), k.cfg.Addresses.Release(n.plan.Addresses()))
	if err != nil {
		k.cfg.Log.Warningf("attached, but cleaning up after the former configuration failed: %v", err)
	}
	k.cfg.Log.Infof("attached: DNS to %s is untracked (%s)", addressList(attached), k.cfg.Backend.Name())
	return nil
}

// Rollback forgets the prepared plan and returns to the committed one.
func (k *Keeper) Rollback() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.next == nil {
		return nil
	}
	return k.abandon()
}

// abandon cancels the prepared change. The lock is held.
func (k *Keeper) abandon() error {
	n := k.next
	k.next = nil
	if n.cancel != nil {
		n.cancel()
		// Its goroutine may be waiting for the lock and finds the change gone.
		k.mu.Unlock()
		<-n.done
		k.mu.Lock()
	}
	return errors.Join(n.checker.Close(), k.restore())
}

// restore makes the kernel's state that of the committed plan.
func (k *Keeper) restore() error {
	if len(k.plan.Listen) == 0 {
		return k.remove()
	}
	return errors.Join(
		k.cfg.Backend.Install(k.plan, nil),
		k.cfg.Addresses.Release(k.plan.Addresses()),
	)
}

// Detach takes the query rules away and waits, bounded, until the queries that
// came before have been answered. Responses stay untracked.
func (k *Keeper) Detach() error {
	k.mu.Lock()
	err := func() error {
		defer k.mu.Unlock()
		var err error
		if k.next != nil {
			err = k.abandon()
		}
		if k.state != Attached {
			return err
		}
		if detachErr := k.cfg.Backend.Detach(); detachErr != nil {
			return errors.Join(err, detachErr)
		}
		k.state = Draining
		k.attached.Store(nil)
		return err
	}()
	deadline := time.NewTimer(k.cfg.Drain)
	defer deadline.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for k.cfg.Pending() > 0 {
		select {
		case <-deadline.C:
			k.cfg.Log.Warningf("%d queries were still unanswered %s after the query rules went", k.cfg.Pending(), k.cfg.Drain)
			return err
		case <-poll.C:
		}
	}
	return err
}

// Close takes the rules and then the addresses away; after it the Keeper is of
// no more use. Detach comes before it, and the listeners stop between the two.
// Link and addresses stay if another instance on this node needs them.
func (k *Keeper) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	var err error
	if k.next != nil {
		err = k.abandon()
	}
	k.state, k.plan = Detached, Plan{}
	k.attached.Store(nil)
	return errors.Join(err, k.remove())
}

func (k *Keeper) remove() error {
	err := k.cfg.Backend.Remove()
	others, countErr := k.cfg.Backend.Others()
	if countErr != nil {
		return errors.Join(err, countErr)
	}
	if others > 0 {
		k.cfg.Log.Infof("the listen addresses stay: %d other instance(s) on this node use them", others)
		return err
	}
	return errors.Join(err, k.cfg.Addresses.Remove())
}

// State returns where the contract stands.
func (k *Keeper) State() State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// Status returns every listen address of the committed plan and whether DNS
// to it is untracked.
func (k *Keeper) Status() map[netip.Addr]bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[netip.Addr]bool{}
	for _, a := range k.plan.Addresses() {
		out[a] = false
	}
	if k.next != nil {
		for _, a := range k.next.plan.Addresses() {
			out[a] = false
		}
	}
	if attached := k.attached.Load(); attached != nil {
		for _, a := range *attached {
			out[a] = true
		}
	}
	return out
}

// Covers reports whether DNS between a client and this listen address is
// untracked at the moment. It takes no lock.
func (k *Keeper) Covers(a netip.Addr) bool {
	attached := k.attached.Load()
	return attached != nil && slices.Contains(*attached, a)
}

func addressList(addrs []netip.Addr) string {
	words := make([]string, 0, len(addrs))
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}
