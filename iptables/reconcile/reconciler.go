package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// Addresses puts the plan's addresses on this node; package hostaddr does.
type Addresses interface {
	// Ensure adds what is missing, or changes nothing and fails.
	Ensure([]netip.Addr) error
	// Missing returns those that Ensure would have to add.
	Missing([]netip.Addr) ([]netip.Addr, error)
	// Down reports whether somebody has set the link down that carries them, and
	// SetUp sets it up again. Addresses and routes go with a link that is down.
	Down() (bool, error)
	SetUp() error
	// PreferSource sees to it that flows of this node to the addresses do not
	// have these as their source, for they come and go. Ensure does so too;
	// what the node's other addresses are may change.
	PreferSource() error
	// Release gives up those of ours that are not in keep. Like Remove it leaves
	// what others on this node ask for.
	Release(keep []netip.Addr) error
	// Left returns the addresses that others left, that are not in keep and for
	// which nobody asks; Clear takes them away.
	Left(keep []netip.Addr) ([]netip.Addr, error)
	Clear([]netip.Addr) error
	// Remove gives up all of ours, and takes along what others left.
	Remove() error
}

// Checker finds out whether this process, and nobody else, answers. Its methods
// are called by one goroutine at a time, save for Check and Renew, which run
// for different addresses at once, and at the same time.
type Checker interface {
	// Reserve binds the transport addresses from which the given listen
	// addresses are checked, and keeps them until Close. The addresses are on
	// this node by then.
	Reserve([]netip.Addr) ([]iptables.Check, []iptables.Lease, error)
	// Check asks every listening socket of ours at one endpoint, and through
	// what lies behind it. It returns nil if this process answered each time.
	Check(context.Context, iptables.Endpoint) error
	// Renew sends a lease probe to the address and returns when this process
	// answered; the answer has renewed the lease then.
	Renew(context.Context, netip.Addr) (time.Time, error)
	// Effect asks from a port that no rule names, as any client would. It
	// returns nil if this process answered and no conntrack entry was left.
	Effect(context.Context, netip.Addr) error
	// Close gives the transport addresses back.
	Close() error
}

// Kernel is what a Reconciler needs to know of the node. All of its functions may be
// nil.
type Kernel struct {
	// Connections returns the TCP connections to the endpoints that are
	// tracked at the moment.
	Connections func([]iptables.Endpoint) ([]iptables.Connection, error)
	// Held returns the TCP connections that our listeners hold at the endpoints.
	// The rules note their beginnings, but somebody may have taken the rules
	// away since.
	Held func([]iptables.Endpoint) []iptables.Connection
	// Purge deletes entries whose original source is one of the endpoints:
	// responses that were tracked as flows of their own.
	Purge func([]iptables.Endpoint) error
	// Uplinks returns the devices that carry a default route, for a plan that
	// names none.
	Uplinks func(iptables.Plan) ([]string, error)
	// Unowned returns those of the addresses that no Service owns.
	Unowned func([]netip.Addr) []netip.Addr
	// Refresh brings up to date what is not the Reconciler's, at every sync.
	Refresh func(iptables.Rules) error
	// MakeWay lets untracked DNS pass the filter chains of others. It returns
	// for each address to which it does not pass what is in its way and what
	// can be done, and whether anything passes now that did not before. It is
	// called by one goroutine at a time.
	MakeWay func(iptables.Rules) (blocked map[netip.Addr]error, cleared bool)
	// Adopt takes away what a predecessor left for the addresses, and reports
	// whether that was anything. It is called once DNS to them is untracked by
	// our own rules, and at every sync.
	Adopt func([]netip.Addr) (bool, error)
	// Claims returns who else on this node asks for which addresses.
	Claims func() (iptables.Claims, error)
	// Explain names what of somebody else defeats the rules for the address, or
	// returns the empty string.
	Explain func(netip.Addr) string
	// Load is asked once a second what the kernel has made of this process and of
	// the queries to the endpoints.
	Load func([]iptables.Endpoint) Load
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

// Config is what a Reconciler works with. Backend, Addresses and Log are required.
type Config struct {
	Backend   iptables.Backend
	Addresses Addresses
	Kernel    Kernel
	Log       Logger

	// Yield makes our listeners at the endpoints leave what comes from now on to
	// those of another instance; they still answer what has come. It is called
	// at a stop for those at which another instance listens, whose rules go on
	// bringing queries here. Nil means that they cannot.
	Yield func([]iptables.Endpoint) error

	// Reset resets the TCP connections that our listeners hold at the endpoints
	// with clients behind the devices, or with all if these are nil. It is called
	// when what they send is tracked from now on. The cluster's DNS knows nothing
	// of such a connection and would reset it, but a client whose segments were
	// lost waits longer each time before it sends another. Nil leaves it at that.
	Reset func(listen []iptables.Endpoint, devices []string) error

	// Served tells what the listeners at the endpoints have done so far; nil
	// means nothing. The drain ends when it is complete.
	Served func([]iptables.Endpoint) Served

	// Drain bounds the wait for answers; zero means 5 s, CoreDNS's longest
	// time with an upstream.
	Drain time.Duration

	// Sync is the time between two looks at rules and addresses when no
	// change was announced; zero means 10 s.
	Sync time.Duration

	// Changes announces that somebody changed rules, links or addresses; nil
	// means that only Sync finds out.
	Changes <-chan iptables.Change
}

// Served is what the listeners have done so far.
type Served struct {
	Arrived  uint64 // queries
	Answered uint64 // those that are done with
	OverTCP  uint64 // those that arrived over TCP

	// Connections is the number of TCP connections that the listeners hold at
	// the moment.
	Connections int
}

const (
	// attachInterval is the time between two rounds of checks while detached:
	// rules are due within a second of the listeners answering.
	attachInterval = 100 * time.Millisecond

	// lessLease is the time between two rounds without a lease.
	lessLease = time.Second

	// complainAfter is how long the listeners may stay silent before the log
	// says so. A start takes well under a second.
	complainAfter = 5 * time.Second

	// queued is how long a query that came before the query rules went may
	// wait in the queue of its socket, uncounted.
	queued = 50 * time.Millisecond

	// idle is how long a TCP connection must be without a query to be taken
	// for idle at the stop, and linger bounds the wait for that. Those with
	// queries are closed behind an answer, see Released.
	idle   = 500 * time.Millisecond
	linger = 2 * time.Second

	// effectInterval is the time between two looks at the effect.
	effectInterval = time.Second
)

// A Reconciler owns the rules and addresses of one process. Its methods are safe
// for concurrent use; a method that changes the kernel waits for the one
// before it.
//
// A change of plan has two halves, since the addresses must be there before
// the listeners and the rules only after them: Prepare, then Commit, or
// Rollback if the listeners could not be opened.
type Reconciler struct {
	cfg Config

	// covered is what Covers reads for every query.
	covered atomic.Pointer[[]netip.Addr]

	// defeated are the addresses of effect with an error, for Untracks.
	defeated atomic.Pointer[[]netip.Addr]

	lapses   atomic.Uint64
	given    givenBack
	released atomic.Bool // what Released tells
	hopeless atomic.Bool // queries were not answered in all of the drain

	// mu is held while the kernel changes, which may take seconds: a foreign
	// transaction can hold the kernel's own lock that long. What renews the
	// lease must not wait for it.
	mu      sync.Mutex
	current *watch // committed: attached, or about to be again
	next    *watch // prepared, perhaps waiting for its listeners
	leaving bool   // Detach was called, for good
	closed  bool
	bare    bool // the rules name no leases, since the queries are given back
	fights  map[string]*fight
	left    map[netip.Addr]time.Time // what others left, since when we know

	installed map[iptables.Backend]iptables.Rules
	retired   iptables.Counters // of backends that were given up

	// facts is held for moments only.
	facts   sync.Mutex
	state   State
	since   time.Time // of state
	reason  error     // why the rules wait, or why the last round of checks failed
	status  []*watch  // current and next, for readers
	repairs map[string]uint64
	syncs   uint64
	took    time.Duration // all syncs
	effect  map[netip.Addr]error
	tenures map[netip.Addr]tenure
	blocked map[netip.Addr]error // what MakeWay returned last
	cleared time.Time            // when MakeWay last let something pass
	aside   error                // which devices are left to the cluster
	cause   string               // what of others may be why we are not attached

	// What lapses have taught outlasts the plan under which they happened.
	learned   backoff
	waitsFor  error  // why it waits, or waited last
	overloads uint64 // how often queries were given up to a CPU limit

	looking  sync.Mutex             // held for a look at the load
	crowded  atomic.Pointer[func()] // looks at it for the attached plan
	pressure pressure

	// probing holds a token while lease probes are under way.
	probing chan struct{}
}

// watch is a plan and the goroutine that keeps it.
type watch struct {
	plan    iptables.Plan
	backend iptables.Backend
	checker Checker
	late    bool // its rules could not be installed yet
	checks  []iptables.Check
	leases  []iptables.Lease
	renewed map[netip.Addr]time.Time // when the first lease was taken
	cancel  context.CancelFunc       // nil before the commit
	done    chan struct{}
}

// New returns a Reconciler that holds nothing yet.
func New(cfg Config) *Reconciler {
	if cfg.Drain == 0 {
		cfg.Drain = 5 * time.Second
	}
	if cfg.Sync == 0 {
		cfg.Sync = 10 * time.Second
	}
	if cfg.Served == nil {
		cfg.Served = func([]iptables.Endpoint) Served { return Served{} }
	}
	return &Reconciler{
		cfg: cfg, fights: map[string]*fight{}, left: map[netip.Addr]time.Time{}, since: time.Now(), repairs: map[string]uint64{}, effect: map[netip.Addr]error{},
		tenures:   map[netip.Addr]tenure{},
		installed: map[iptables.Backend]iptables.Rules{}, retired: iptables.Counters{}, probing: make(chan struct{}, 1),
	}
}

// Prepare puts the plan's addresses on the node and installs everything but
// the query rules of what is new. What is attached stays so. On an error the
// node is as it was before. Rules that another program keeps us from installing
// come as soon as it lets us, since the listeners can do without.
func (k *Reconciler) Prepare(p iptables.Plan, c Checker) error { return k.PrepareOn(k.Backend(), p, c) }

// PrepareOn is Prepare with another backend. It takes over from the one in
// force when the plan attaches: there is no moment without the rules of either.
func (k *Reconciler) PrepareOn(b iptables.Backend, p iptables.Plan, c Checker) error {
	if err := p.Validate(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.leaving || k.closed {
		return errLeaving
	}
	if k.current != nil && p.Link != k.current.plan.Link {
		return fmt.Errorf("interface %s: the interface cannot change from %s without a restart", p.LinkName(), k.current.plan.LinkName())
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
	n := &watch{plan: p.Normalize(), backend: b, checker: c, renewed: map[netip.Addr]time.Time{}}
	var err error
	if n.checks, n.leases, err = c.Reserve(p.Addresses()); err == nil {
		err = k.install(b, k.current, n)
	}
	if errors.Is(err, iptables.ErrBusy) {
		k.cfg.Log.Warningf("the rules come later: %v", err)
		n.late, err = true, nil
	}
	if err == nil {
		err = k.ensureAgain(n.plan)
	}
	if err == nil {
		err = k.purge(n.plan)
	}
	if err != nil {
		return errors.Join(err, c.Close(), k.restore(b))
	}
	k.next = n
	k.publish()
	return nil
}

// publish shows readers which plans there are. The lock is held.
func (k *Reconciler) publish() {
	k.facts.Lock()
	defer k.facts.Unlock()
	k.status = []*watch{k.current, k.next}
}

func (k *Reconciler) setState(s State) {
	k.facts.Lock()
	defer k.facts.Unlock()
	k.enter(s)
}

// enter changes the state. facts is held.
func (k *Reconciler) enter(s State) {
	if k.state != s {
		k.state, k.since = s, time.Now()
	}
}

func (k *Reconciler) setReason(err error) {
	k.facts.Lock()
	defer k.facts.Unlock()
	k.reason = err
}

// install makes a backend's static rules those of the given plans together,
// less those of another backend.
func (k *Reconciler) install(b iptables.Backend, ws ...*watch) error {
	r, err := k.rules(b, ws...)
	if err != nil {
		return err
	}
	if err := b.Install(r); err != nil {
		return err
	}
	k.installed[b] = r
	return nil
}

// rules are those of the given plans together; the last one's settings hold. A
// nil watch asks for nothing, and one of another backend for nothing here.
func (k *Reconciler) rules(b iptables.Backend, ws ...*watch) (r iptables.Rules, err error) {
	for _, w := range ws {
		if w == nil || w.backend != b {
			continue
		}
		if r.Plan, err = r.Plan.Merge(w.plan); err != nil {
			return r, err
		}
		r.Checks = append(r.Checks, w.checks...)
		if !k.bare {
			r.Leases = append(r.Leases, w.leases...)
		}
	}
	if !r.Plan.AnySource {
		r.Uplinks = r.Plan.Uplinks
		if len(r.Uplinks) == 0 && k.cfg.Kernel.Uplinks != nil {
			if r.Uplinks, err = k.cfg.Kernel.Uplinks(r.Plan); err != nil {
				return r, err
			}
		}
	}
	if k.cfg.Kernel.Unowned != nil {
		r.Unowned = k.cfg.Kernel.Unowned(r.Plan.Addresses())
	}
	return r, nil
}

func (k *Reconciler) purge(p iptables.Plan) error {
	if k.cfg.Kernel.Purge == nil {
		return nil
	}
	return k.cfg.Kernel.Purge(p.Listen)
}

// Commit waits in the background until every listen endpoint of the prepared
// plan answers, attaches then, and keeps it so.
func (k *Reconciler) Commit() {
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
		if k.attachWhenAnswering(ctx, n) {
			k.keep(ctx, n)
		}
	}()
}

// attachWhenAnswering checks all endpoints until each has answered, then
// attaches, trying again if the kernel refuses. It reports whether it did.
func (k *Reconciler) attachWhenAnswering(ctx context.Context, n *watch) bool {
	complain := time.NewTimer(complainAfter)
	defer complain.Stop()
	poll := time.NewTicker(attachInterval)
	defer poll.Stop()
	var looked time.Time
	for {
		if time.Since(looked) >= wayInterval {
			k.lookAtWay(ctx, n)
			looked = time.Now()
		}
		last := k.installLate(ctx, n)
		if last == nil {
			last = k.obstructed(n.plan, checkAll(ctx, n))
		}
		if last == nil {
			switch ok, err := k.attach(ctx, n); {
			case err != nil:
				last = err
			default:
				k.setReason(nil)
				k.setCause("")
				return ok
			}
		}
		k.setReason(last)
		select {
		case <-ctx.Done():
			return false
		case <-complain.C:
			k.findCause(ctx, n)
			k.cfg.Log.Warningf("the rules wait, %s: %v", whereTo(last), k.Standing().Reason)
		case <-poll.C:
		}
	}
}

// installLate installs what Prepare could not. Without it our own checks are
// rewritten like anybody's queries, and somebody else answers them.
func (k *Reconciler) installLate(ctx context.Context, n *watch) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !n.late || ctx.Err() != nil || k.next != n {
		return nil
	}
	if err := k.install(n.backend, k.current, n); err != nil {
		return err
	}
	n.late = false
	return k.ensureAgain(n.plan)
}

// ensureAgain puts back addresses that an instance took along which ended meanwhile:
// it could not see that we ask for them before our rules said so.
func (k *Reconciler) ensureAgain(p iptables.Plan) error {
	missing, err := k.cfg.Addresses.Missing(p.Addresses())
	if err != nil || len(missing) == 0 {
		return err
	}
	return k.cfg.Addresses.Ensure(p.Addresses())
}

// checkAll runs one round of checks, for all addresses at once, and returns
// what went wrong by address.
func checkAll(ctx context.Context, w *watch) map[netip.Addr]error {
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		errs = map[netip.Addr]error{}
	)
	for _, a := range w.plan.Addresses() {
		wg.Go(func() {
			for _, e := range w.plan.Listen {
				if e.Addr != a {
					continue
				}
				if err := w.checker.Check(ctx, e); err != nil {
					mu.Lock()
					errs[a] = fmt.Errorf("%s does not answer: %w", e, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return errs
}

func firstError(errs map[netip.Addr]error) error {
	for _, a := range slices.SortedFunc(maps.Keys(errs), netip.Addr.Compare) {
		if errs[a] != nil {
			return errs[a]
		}
	}
	return nil
}

// attach makes the prepared plan the committed one and untracks its queries.
// It reports false if the plan was given up meanwhile.
func (k *Reconciler) attach(ctx context.Context, n *watch) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ctx.Err() != nil || k.next != n {
		return false, nil
	}
	if err := k.install(n.backend, n); err != nil {
		return false, err
	}
	if err := k.exempt(n); err != nil {
		return false, err
	}
	if err := k.makeLive(ctx, n); err != nil {
		return false, err
	}
	old := k.current
	if k.replaces(n) {
		if err := k.exemptOnly(n); err != nil {
			return false, err
		}
	}
	k.current, k.next = n, nil
	k.publish()
	k.forgetOthers(n.plan)
	if !n.plan.DryRun && !k.given.back() && k.waiting() == nobody {
		k.setState(Attached)
		blocked := k.blockedOf(n.plan)
		k.cover(slices.DeleteFunc(n.plan.Addresses(), func(a netip.Addr) bool { return blocked[a] != nil }))
	}
	var err error
	if old != nil {
		k.retire(old)
		err = old.checker.Close()
		if old.backend != n.backend {
			err = errors.Join(err, k.giveUp(old.backend))
		}
	}
	if n.plan.DryRun {
		err = errors.Join(err, k.untrackNothing(n))
	}
	err = errors.Join(err, k.cfg.Addresses.Release(n.plan.Addresses()))
	if err != nil {
		k.cfg.Log.Warningf("attached, but cleaning up after the former configuration failed: %v", err)
	}
	switch {
	case n.plan.DryRun:
		k.cfg.Log.Infof("dry-run: queries to %s are counted, nothing is untracked (%s)", addressList(n.plan.Addresses()), n.backend.Name())
	case k.given.byHand.Load():
		k.cfg.Log.Infof("ready, and still detached by hand: DNS to %s goes to the cluster until it is attached by hand", addressList(n.plan.Addresses()))
	case k.given.back() || k.waiting() != nobody:
		k.cfg.Log.Infof("ready, and DNS to %s goes to the cluster still: %v", addressList(n.plan.Addresses()), k.Standing().Reason)
	default:
		k.cfg.Log.Infof("attached: DNS to %s is untracked (%s)", addressList(n.plan.Addresses()), n.backend.Name())
	}
	return true, nil
}

// forgetOthers drops what is known of addresses that are no longer served.
func (k *Reconciler) forgetOthers(p iptables.Plan) {
	k.facts.Lock()
	defer k.facts.Unlock()
	other := func(a netip.Addr) bool { return !slices.Contains(p.Addresses(), a) }
	maps.DeleteFunc(k.effect, func(a netip.Addr, _ error) bool { return other(a) })
	k.publishEffect()
	maps.DeleteFunc(k.tenures, func(a netip.Addr, _ tenure) bool { return other(a) })
}

// untrackNothing ends what a plan before a dry run may have begun: addresses that
// are live would be attached again as soon as the dry run is over, and responses
// that left since its rules came have made entries.
func (k *Reconciler) untrackNothing(w *watch) error {
	k.cover(nil)
	k.setState(Detached)
	return errors.Join(k.detach(w.backend), k.purge(w.plan))
}

// adopt takes over what a predecessor left. It may have been what let untracked
// DNS pass.
func (k *Reconciler) adopt(w *watch) {
	if k.cfg.Kernel.Adopt == nil || k.State() != Attached {
		return
	}
	changed, err := k.cfg.Kernel.Adopt(w.plan.Addresses())
	if err != nil {
		k.cfg.Log.Warningf("take away what a predecessor left: %v", err)
	}
	if changed {
		k.makeWay(k.installed[w.backend])
	}
}

// replaces reports whether a plan takes over from another backend.
func (k *Reconciler) replaces(n *watch) bool {
	return k.current != nil && k.current.backend != n.backend
}

// giveUp removes the rules of a backend after which another has come.
func (k *Reconciler) giveUp(b iptables.Backend) error {
	err := b.Remove()
	delete(k.installed, b)
	counters, countErr := b.Counters()
	k.facts.Lock()
	defer k.facts.Unlock()
	for key, n := range counters {
		k.retired[key] += n
	}
	return errors.Join(err, countErr)
}

// exempt lets TCP connections be that are tracked already. Those begun after
// the rules were installed are noted by the rules themselves, so the time
// between this look and the attach loses none.
func (k *Reconciler) exempt(n *watch) error {
	if k.cfg.Kernel.Connections == nil || k.current != nil && k.State() == Attached && !k.replaces(n) {
		return nil
	}
	conns, err := k.cfg.Kernel.Connections(n.plan.Listen)
	if err != nil {
		return err
	}
	return n.backend.Exempt(conns)
}

// exemptOnly makes a backend forget the connections that began while another
// untracked them: only those that the kernel tracks are exempt.
func (k *Reconciler) exemptOnly(n *watch) error {
	if k.cfg.Kernel.Connections == nil {
		return nil
	}
	conns, err := k.cfg.Kernel.Connections(n.plan.Listen)
	if err != nil {
		return err
	}
	return n.backend.ExemptOnly(conns)
}

// makeLive untracks the queries of a plan that has answered.
func (k *Reconciler) makeLive(ctx context.Context, w *watch) error {
	k.feelPressure(w.plan) // before the queries of a busy node come all at once
	switch {
	case w.plan.DryRun || k.given.back() || k.waiting() != nobody:
		return nil
	case w.plan.Lease == 0:
		return w.backend.Attach()
	}
	blocked := k.blockedOf(w.plan)
	free := slices.DeleteFunc(w.plan.Addresses(), func(a netip.Addr) bool { return blocked[a] != nil })
	for _, r := range k.renewAll(ctx, w, free) {
		if r.err != nil {
			return fmt.Errorf("%s: lease probe: %w", r.addr, r.err)
		}
		w.renewed[r.addr] = r.answered
	}
	return nil
}

// retire ends the goroutine of a watch. The lock is held; the goroutine may be
// waiting for it.
func (k *Reconciler) retire(w *watch) {
	if w.cancel == nil {
		return
	}
	w.cancel()
	k.mu.Unlock()
	<-w.done
	k.mu.Lock()
}

// Rollback forgets the prepared plan and returns to the committed one.
func (k *Reconciler) Rollback() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.next == nil {
		return nil
	}
	return k.abandon()
}

// abandon cancels the prepared change. The lock is held.
func (k *Reconciler) abandon() error {
	n := k.next
	k.next = nil
	k.publish()
	k.retire(n)
	return errors.Join(n.checker.Close(), k.restore(n.backend))
}

// restore makes the kernel's state that of the committed plan, after one on a
// backend was given up.
func (k *Reconciler) restore(b iptables.Backend) error {
	if k.current == nil {
		return k.remove(b)
	}
	var err error
	if b != k.current.backend {
		err = k.giveUp(b)
	}
	return errors.Join(err, k.install(k.current.backend, k.current), k.cfg.Addresses.Release(k.current.plan.Addresses()))
}

// Detach takes the query rules away for good and waits, bounded, until the queries
// that came before have been answered. Responses, and TCP connections that our
// listeners hold, stay untracked.
func (k *Reconciler) Detach() error {
	k.mu.Lock()
	err := k.leave()
	k.mu.Unlock()
	if !k.hopeless.Load() {
		k.hopeless.Store(!k.drain())
	}
	return err
}

// leave gives back what is attached. In every state another instance's rules may
// bring queries to our listeners, and clients may ask over connections to them.
func (k *Reconciler) leave() error {
	if k.leaving {
		return nil
	}
	k.leaving = true
	listen := k.listen()
	var err error
	if k.next != nil {
		err = k.abandon()
	}
	if k.current != nil {
		k.retire(k.current)
	}
	k.released.Store(true)
	if k.State() == Attached || k.anyHeld() {
		k.cover(nil)
		k.setState(Draining)
		err = errors.Join(err, k.detach(k.Backend()))
	}
	return errors.Join(err, k.yield(listen))
}

// anyHeld reports whether a lease is held. While we are detached that is so if a
// lease probe was answered and nothing followed from it, since we stopped then.
func (k *Reconciler) anyHeld() bool {
	k.facts.Lock()
	defer k.facts.Unlock()
	for _, t := range k.tenures {
		if time.Now().Before(t.until) {
			return true
		}
	}
	return false
}

// yield hands what another instance's rules bring here over to that instance.
func (k *Reconciler) yield(listen []iptables.Endpoint) error {
	if k.cfg.Yield == nil || len(listen) == 0 || k.cfg.Kernel.Claims == nil {
		return nil
	}
	claims, err := k.cfg.Kernel.Claims()
	if err != nil {
		return err
	}
	if listen = claims.Serving(listen); len(listen) == 0 {
		return nil
	}
	return k.cfg.Yield(listen)
}

// detach takes a backend's query rules away.
func (k *Reconciler) detach(b iptables.Backend) error {
	var held []iptables.Connection
	if k.cfg.Kernel.Held != nil {
		held = k.cfg.Kernel.Held(k.listen())
	}
	return b.Detach(held)
}

// drain waits until all queries that came have been answered, and until no
// client is about to send another one over a connection that we hold. It reports
// false if it had to give up.
func (k *Reconciler) drain() bool {
	listen := k.listen()
	began := time.Now()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	last := k.cfg.Served(listen)
	lastOverTCP := began
	for {
		now := <-poll.C
		served := k.cfg.Served(listen)
		if served.OverTCP != last.OverTCP {
			last, lastOverTCP = served, now
		}
		waiting := served.Arrived - served.Answered
		held := served.Connections > 0 && now.Sub(lastOverTCP) < idle && now.Sub(began) < linger
		switch passed := now.Sub(began); {
		case passed >= queued && waiting == 0 && !held:
			return true
		case passed >= k.cfg.Drain:
			k.cfg.Log.Warningf("%d queries were still unanswered %s after the query rules went", waiting, k.cfg.Drain)
			return false
		}
	}
}

// listen returns the endpoints of the plans in force.
func (k *Reconciler) listen() (all []iptables.Endpoint) {
	k.facts.Lock()
	defer k.facts.Unlock()
	for _, w := range k.status {
		if w != nil {
			all = append(all, w.plan.Listen...)
		}
	}
	return all
}

// Released reports whether the query rules were taken away on purpose, so that
// a TCP connection is best closed when the query on it has been answered: its
// client's next one finds the cluster's DNS. It takes no lock.
func (k *Reconciler) Released() bool { return k.released.Load() }

// Close takes the rules and then the addresses away; after it the Reconciler is of
// no more use. Detach comes before it, and the listeners stop between the two.
// What another instance on this node asks for stays.
func (k *Reconciler) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	b := k.Backend()
	var err error
	if k.next != nil {
		err = k.abandon()
	}
	if w := k.current; w != nil {
		k.retire(w)
		err = errors.Join(err, w.checker.Close(), k.purge(w.plan))
	}
	k.current = nil
	k.publish()
	k.setState(Detached)
	k.cover(nil)
	return errors.Join(err, k.remove(b))
}

// remove takes the rules away first: from then on nobody takes our addresses for
// asked for.
func (k *Reconciler) remove(b iptables.Backend) error {
	return errors.Join(b.Remove(), k.cfg.Addresses.Remove())
}

// Backend returns the backend in force.
func (k *Reconciler) Backend() iptables.Backend {
	k.facts.Lock()
	defer k.facts.Unlock()
	for _, w := range k.status {
		if w != nil {
			return w.backend
		}
	}
	return k.cfg.Backend
}

// Counters returns the packet counters of all backends so far.
func (k *Reconciler) Counters() (iptables.Counters, error) {
	counters, err := k.Backend().Counters()
	if err != nil {
		return nil, err
	}
	k.facts.Lock()
	defer k.facts.Unlock()
	out := maps.Clone(counters)
	for key, n := range k.retired {
		out[key] += n
	}
	return out, nil
}

func (k *Reconciler) cover(addrs []netip.Addr) { k.covered.Store(&addrs) }

// Covers reports whether DNS between a client and this listen address is
// untracked at the moment. It takes no lock.
func (k *Reconciler) Covers(a netip.Addr) bool {
	covered := k.covered.Load()
	return covered != nil && slices.Contains(*covered, a)
}

// Untracks reports whether the rules for this listen address are in force and the
// last look at their effect found nothing wrong. It takes no lock.
func (k *Reconciler) Untracks(a netip.Addr) bool {
	defeated := k.defeated.Load()
	return k.Covers(a) && (defeated == nil || !slices.Contains(*defeated, a))
}

// noteEffect remembers what a look at the effect found. facts is held.
func (k *Reconciler) noteEffect(a netip.Addr, err error) {
	k.effect[a] = err
	k.publishEffect()
}

// publishEffect shows it to Untracks. facts is held.
func (k *Reconciler) publishEffect() {
	var defeated []netip.Addr
	for a, err := range k.effect {
		if err != nil {
			defeated = append(defeated, a)
		}
	}
	k.defeated.Store(&defeated)
}

// State returns where the contract stands.
func (k *Reconciler) State() State {
	k.facts.Lock()
	defer k.facts.Unlock()
	return k.state
}

// Status returns every listen address and whether DNS to it is untracked: the
// rules are in force, and the last look at their effect found nothing wrong.
func (k *Reconciler) Status() map[netip.Addr]bool {
	k.facts.Lock()
	defer k.facts.Unlock()
	out := map[netip.Addr]bool{}
	for _, w := range k.status {
		if w == nil {
			continue
		}
		for _, a := range w.plan.Addresses() {
			out[a] = k.Untracks(a)
		}
	}
	return out
}

// Stats are counters of a Reconciler since it was made.
type Stats struct {
	// Lapses is how often a lease ran out although we meant to hold it.
	Lapses uint64
	// Overloads is how often the queries were given to the cluster's DNS before a
	// lease ran out, since too many were lost to a CPU limit.
	Overloads uint64
	// Repairs is how often something of ours was put back, by what it was.
	Repairs map[string]uint64
	// Syncs is how often all was held against what it should be, at Config.Sync
	// and at changes, and SyncTime what that took in all.
	Syncs    uint64
	SyncTime time.Duration
}

// Stats returns the counters.
func (k *Reconciler) Stats() Stats {
	k.facts.Lock()
	defer k.facts.Unlock()
	return Stats{Lapses: k.lapses.Load(), Overloads: k.overloads, Repairs: maps.Clone(k.repairs), Syncs: k.syncs, SyncTime: k.took}
}

// Standing is how a Reconciler sees itself.
type Standing struct {
	State  State
	Since  time.Time // State was entered
	ByHand bool      // detached by hand, until attached by hand
	DryRun bool      // the plan in force untracks nothing
	Reason error     // why it is not attached, or attached without effect; nil if all is well
	Wait   Wait      // after lapses
}

// Wait is a time for which queries are left to the cluster's DNS after lapses.
type Wait struct {
	Until time.Time // zero: there is none
	Cause Cause     // of the last lapse
}

// Standing returns how things are, without waiting for a change under way.
func (k *Reconciler) Standing() Standing {
	k.facts.Lock()
	defer k.facts.Unlock()
	reason := k.reason
	if reason != nil && k.cause != "" && k.state == Detached {
		reason = fmt.Errorf("%w; %s", reason, k.cause)
	}
	for _, a := range slices.SortedFunc(maps.Keys(k.effect), netip.Addr.Compare) {
		if reason == nil && k.effect[a] != nil {
			reason = fmt.Errorf("%s: %w", a, k.effect[a])
		}
	}
	if reason == nil {
		reason = k.aside
	}
	var wait Wait
	if k.learned.waits(time.Now()) {
		wait, reason = Wait{k.learned.until, k.learned.cause}, k.waitsFor
	}
	if why := k.given.useless.Load(); why != nil {
		reason = *why
	}
	dryRun := len(k.status) > 0 && k.status[0] != nil && k.status[0].plan.DryRun
	return Standing{State: k.state, Since: k.since, ByHand: k.given.byHand.Load(), DryRun: dryRun, Reason: reason, Wait: wait}
}

func addressList(addrs []netip.Addr) string {
	words := make([]string, 0, len(addrs))
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}
