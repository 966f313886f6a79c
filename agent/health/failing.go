package health

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/agent/recorder"
	"github.com/trackless-dns/trackless/iptables"
)

// failing detects that the misses of a block fail while the cluster's DNS answers the
// same questions: a firewall drops TCP to kube-dns, or the servers of `forward` are dead.
// Our own checks do not notice: they need no upstream.
//
// Only misses of clients count. Several different names must fail in a row, for some time,
// and no miss may be answered in between. Then the same questions are asked as a pod would
// ask them. If the cluster's DNS answers them, queries fail over. They fail back when the
// block's own upstreams have answered the questions several times in a row. Each failover
// lasts twice as long as the one before, so that queries do not flap.
type failing struct {
	suspects atomic.Int64 // blocks with failures, for the fast path
	recheck  func()

	mu     sync.Mutex
	blocks map[Block]*failures
	over   map[Block]bool // blocks whose queries fail over
	why    error          // nil without a failover
}

// failures are the failed misses of one block.
type failures struct {
	asked []failedMiss // with different names; none was answered since
	since time.Time    // when the first of them failed
	until time.Time    // no failover before it

	over   bool          // the block's queries have failed over
	overAt time.Time     // when they did
	good   int           // rounds in a row in which the block's own upstreams answered
	wait   time.Duration // the shortest time until failback
	backAt time.Time     // the last failback
}

// failedMiss is a question, and the function that passes it on.
type failedMiss struct {
	pass     func(context.Context, dns.ResponseWriter, *dns.Msg) (rcode int, err error)
	question dns.Question
}

// query asks the question anew.
func (m failedMiss) query() *dns.Msg {
	q := new(dns.Msg).SetQuestion(m.question.Name, m.question.Qtype)
	q.Question[0].Qclass = m.question.Qclass
	return q
}

const (
	// failedNames different names must have failed, and no miss may have been answered
	// for failedFor.
	failedNames = 3
	failedFor   = time.Second

	// pendingFor is the age at which a miss under way counts as failed.
	pendingFor = 2 * time.Second

	// bypassTimeout bounds a question to the cluster's DNS, and recheckTimeout one to
	// the block's own upstreams.
	bypassTimeout  = time.Second
	recheckTimeout = 3 * time.Second

	// The block's own upstreams must have answered in goodRounds rounds in a row.
	goodRounds = 3

	// The first failover lasts at least minFailover, and none must last longer than
	// maxFailover. If the cluster's DNS does not answer either, it is asked again after
	// askAgain.
	minFailover = 5 * time.Second
	maxFailover = 5 * time.Minute
	askAgain    = 10 * time.Second

	// After forgiven without a failover the next one counts as the first.
	forgiven = 10 * time.Minute
)

// serve passes a miss on and records whether it is answered.
func (f *failing) serve(ctx context.Context, q Query, serve func(context.Context, Query) (int, error)) (int, error) {
	if len(q.R.Question) != 1 {
		return serve(ctx, q)
	}
	w := &outcomeWriter{ResponseWriter: q.W}
	q.W = w
	// Plugins may write into the query while it is under way.
	question := q.R.Question[0]
	failed := func() { f.failed(q.Block, failedMiss{q.Pass, question}) }
	pending := time.AfterFunc(pendingFor, failed)
	rcode, err := serve(ctx, q)
	pending.Stop()
	switch {
	case w.written.Load() && w.rcode != dns.RcodeServerFailure:
		f.answered(q.Block)
	case ctx.Err() != nil: // its client has gone
	case w.written.Load() || rcode == dns.RcodeServerFailure:
		failed()
	}
	return rcode, err
}

// outcomeWriter remembers the answer's RCODE.
type outcomeWriter struct {
	dns.ResponseWriter
	written atomic.Bool
	rcode   int
}

// WriteMsg implements dns.ResponseWriter.
func (w *outcomeWriter) WriteMsg(m *dns.Msg) error {
	w.rcode = m.Rcode
	w.written.Store(true)
	return w.ResponseWriter.WriteMsg(m)
}

// answered records that a miss was answered. After a failover it has no meaning: the
// answer may be that of the cluster's DNS.
func (f *failing) answered(block Block) {
	if f.suspects.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.blocks[block]; s != nil && !s.over && len(s.asked) > 0 {
		s.asked = nil
		f.suspects.Add(-1)
	}
}

// failed records that a miss was not answered.
func (f *failing) failed(block Block, m failedMiss) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.recheck == nil {
		return // the monitor is stopped
	}
	s := f.blocks[block]
	if s == nil {
		s = &failures{}
		f.blocks[block] = s
	}
	if s.over {
		return
	}
	same := func(have failedMiss) bool { return have.question.Name == m.question.Name }
	if len(s.asked) < failedNames && !slices.ContainsFunc(s.asked, same) {
		if len(s.asked) == 0 {
			s.since = time.Now()
			f.suspects.Add(1)
		}
		s.asked = append(s.asked, m)
	}
	if s.due(time.Now()) {
		f.recheck()
	}
}

// due reports whether to ask the cluster's DNS.
func (s *failures) due(now time.Time) bool {
	return !s.over && len(s.asked) == failedNames && now.Sub(s.since) >= failedFor && !now.Before(s.until)
}

// begin starts to count failures; end stops it.
func (f *failing) begin(recheck func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recheck, f.blocks, f.over, f.why = recheck, map[Block]*failures{}, nil, nil
	f.suspects.Store(0)
}

func (f *failing) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recheck, f.blocks, f.over, f.why = nil, nil, nil, nil
	f.suspects.Store(0)
}

// resolvers ask a failed question again.
type resolvers struct {
	// bypass asks the cluster's DNS while our rules are in force, asPod when they are
	// not. own asks the block's own upstreams.
	bypass, asPod, own func(context.Context, failedMiss) error
}

// check decides which blocks fail over, and reports whether that changed. One goroutine
// calls it at a time.
func (f *failing) check(ctx context.Context, w resolvers) (changed bool) {
	f.mu.Lock()
	suspects := map[Block]*failures{}
	for block, s := range f.blocks {
		if s.over || s.due(time.Now()) {
			suspects[block] = s
		}
	}
	f.mu.Unlock()
	over, why := map[Block]bool{}, error(nil)
	for block, s := range suspects {
		// From here on only this goroutine changes s.asked; answered may clear it.
		f.mu.Lock()
		asked, isOver, since := s.asked, s.over, s.overAt
		f.mu.Unlock()
		if len(asked) == 0 {
			continue
		}
		switch {
		case !isOver:
			f.considerFailover(s, most(ctx, bypassTimeout, asked, w.bypass))
		case time.Since(since) > failoverInterval/2 && most(ctx, bypassTimeout, asked, w.asPod) != nil:
			f.failBack(s, true)
		default:
			f.considerFailback(s, most(ctx, recheckTimeout, asked, w.own))
		}
		f.mu.Lock()
		if s.over {
			over[block] = true
			why = fmt.Errorf("the upstreams do not answer misses, and the cluster's DNS answers the same questions, such as %s", asked[0].question.Name)
		}
		f.mu.Unlock()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil || f.blocks == nil {
		return false
	}
	changed = !maps.Equal(f.over, over)
	if f.over = over; f.why == nil || why == nil {
		f.why = why
	}
	return changed
}

// join adds the blocks whose misses fail to the state.
func (f *failing) join(config *Config, st *state) (*state, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.why == nil {
		return st, nil
	}
	out := &state{blocks: maps.Clone(f.over), services: map[netip.Addr]netip.AddrPort{}}
	for _, e := range config.Listen {
		out.services[e.Addr] = netip.AddrPortFrom(config.FailoverTo(e.Addr), e.Port)
	}
	return out, f.why
}

// considerFailover fails over if the cluster's DNS has answered.
func (f *failing) considerFailover(s *failures, bypass error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	switch {
	case len(s.asked) == 0: // answered meanwhile
	case bypass != nil:
		s.asked, s.until = nil, now.Add(askAgain)
		f.suspects.Add(-1)
	default:
		if s.wait == 0 || now.Sub(s.backAt) > forgiven {
			s.wait = minFailover
		} else {
			s.wait = min(2*s.wait, maxFailover)
		}
		s.over, s.overAt, s.good = true, now, 0
	}
}

// considerFailback fails back if the block's own upstreams have answered for long enough.
func (f *failing) considerFailback(s *failures, own error) {
	if s.good++; own != nil {
		s.good = 0
	}
	if s.good >= goodRounds && time.Since(s.overAt) >= s.wait {
		f.failBack(s, false)
	}
}

// failBack ends a failover. inVain means that the cluster's DNS does not answer either.
func (f *failing) failBack(s *failures, inVain bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.over, s.asked, s.backAt = false, nil, time.Now()
	if inVain {
		s.until = s.backAt.Add(s.wait)
	}
	f.suspects.Add(-1)
}

// most asks all questions at once. It returns nil if at most one stayed unanswered.
func most(ctx context.Context, timeout time.Duration, questions []failedMiss, ask func(context.Context, failedMiss) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	errs := make(chan error, len(questions))
	for _, q := range questions {
		go func() { errs <- ask(ctx, q) }()
	}
	var last error
	unanswered := 0
	for range questions {
		if err := <-errs; err != nil {
			last = err
			unanswered++
		}
	}
	if unanswered > 1 {
		return last
	}
	return nil
}

// askOwn asks a block's own upstreams. They may ignore the context.
func askOwn(ctx context.Context, q failedMiss) error {
	done := make(chan error, 1)
	go func() {
		w := &recorder.Recorder{}
		rcode, err := q.pass(ctx, w, q.query())
		switch {
		case err == nil && w.Answer == nil:
			err = fmt.Errorf("no answer, %s", dns.RcodeToString[rcode])
		case err == nil:
			err = checkAnswer(w.Answer)
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// checkAnswer returns an error for any RCODE but NOERROR and NXDOMAIN.
func checkAnswer(m *dns.Msg) error {
	if m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError {
		return nil
	}
	return fmt.Errorf("answered with %s", dns.RcodeToString[m.Rcode])
}

// resolversOf returns the resolvers of a configuration. They ask the cluster's DNS over
// UDP: at an address that our rules leave alone, and after a failover at the address that
// pods ask.
func (m *Monitor) resolversOf(config *Config, hasEndpoints func(netip.AddrPort) (bool, error)) resolvers {
	ask := func(ctx context.Context, servers []netip.AddrPort, question *dns.Msg) error {
		err := errNoService
		for _, s := range servers {
			var answer *dns.Msg
			if answer, err = m.askService(ctx, "udp", s, question); err == nil {
				return checkAnswer(answer)
			}
		}
		return err
	}
	return resolvers{
		bypass: func(ctx context.Context, q failedMiss) error {
			return ask(ctx, config.bypassServers(hasEndpoints), q.query())
		},
		asPod: func(ctx context.Context, q failedMiss) error { return ask(ctx, config.clusterDNS(), q.query()) },
		own:   askOwn,
	}
}

// clusterDNS returns the Services that answer for the listen addresses after a failover;
// none if one of the addresses has no Service.
func (c *Config) clusterDNS() []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range c.Listen {
		service := netip.AddrPortFrom(c.FailoverTo(e.Addr), e.Port)
		if !service.Addr().IsValid() {
			return nil
		}
		if !slices.Contains(out, service) {
			out = append(out, service)
		}
	}
	return out
}

// bypassServers returns Services of the cluster's DNS that are no listen addresses of ours.
// Our queries to them take the path of a pod's query on a node without us.
func (c *Config) bypassServers(hasEndpoints func(netip.AddrPort) (bool, error)) []netip.AddrPort {
	candidates := c.clusterDNS()
	if len(candidates) == 0 {
		return nil // queries cannot fail over
	}
	for _, block := range c.Blocks() {
		for _, group := range block.Upstreams() {
			candidates = append(candidates, group.Addrs...)
		}
	}
	return slices.DeleteFunc(candidates, func(a netip.AddrPort) bool {
		if c.listensAt(a.Addr()) {
			return true
		}
		there, err := hasEndpoints(a)
		return err != nil || !there
	})
}

func (c *Config) listensAt(a netip.Addr) bool {
	return slices.ContainsFunc(c.Listen, func(e iptables.Endpoint) bool { return e.Addr == a })
}
