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

// failing detects that the misses of a block fail while the cluster's DNS answers
// the same questions: a firewall drops TCP to kube-dns, or the servers that forward
// asks are dead. Our own checks need no upstream and are answered all the while.
//
// Only real misses count: several different names fail in a row, for a while, and none
// is answered in between. Then the same questions are asked as a pod would ask them. If
// the cluster's DNS answers them, the queries are given back. They are taken back when
// the block's own upstreams have answered the questions several times in a row. Each
// time the queries are given back for twice as long, so that they do not flap.
type failing struct {
	suspects atomic.Int64 // blocks with failures, for the fast path
	recheck  func()

	mu     sync.Mutex
	blocks map[Block]*failures
	given  map[Block]bool // for which queries are to be given back
	why    error          // nil for none
}

// failures is what is known of one block's misses.
type failures struct {
	asked []failedMiss // different names, none of which was answered since
	since time.Time    // the first of them failed
	until time.Time    // nothing is done before

	back    bool          // the queries are given back for this block
	backAt  time.Time     // since when
	good    int           // rounds in a row in which the own upstreams answered
	wait    time.Duration // for which they are given back at least
	takenAt time.Time     // when they were taken back last
}

// failedMiss is a question, and how it was passed on.
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
	// failedNames is how many different names must have failed, and failedFor for
	// how long nothing was answered.
	failedNames = 3
	failedFor   = time.Second

	// pendingFor is when a miss that is under way counts as failed.
	pendingFor = 2 * time.Second

	// witnessTimeout bounds a question to the cluster's DNS, and recheckTimeout one to
	// the block's own upstreams.
	witnessTimeout = time.Second
	recheckTimeout = 3 * time.Second

	// goodRounds in a row must have been answered by the block's own upstreams.
	goodRounds = 3

	// The times for which queries are given back at least, and for which the
	// cluster's DNS is not asked again when it did not answer either.
	firstBack   = 5 * time.Second
	longestBack = 5 * time.Minute
	askAgain    = 10 * time.Second

	// forgiven is after how long a failure is a new one.
	forgiven = 10 * time.Minute
)

// serve passes a miss to f and notes what becomes of it.
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
	case ctx.Err() != nil: // nobody waits for it any more
	case w.written.Load() || rcode == dns.RcodeServerFailure:
		failed()
	}
	return rcode, err
}

// outcomeWriter remembers what was answered.
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

// answered notes that a miss was answered. While queries are given back that may be
// by the cluster's DNS and says nothing.
func (f *failing) answered(block Block) {
	if f.suspects.Load() == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.blocks[block]; s != nil && !s.back && len(s.asked) > 0 {
		s.asked = nil
		f.suspects.Add(-1)
	}
}

// failed notes that a miss was not answered.
func (f *failing) failed(block Block, m failedMiss) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.recheck == nil {
		return // nobody looks
	}
	s := f.blocks[block]
	if s == nil {
		s = &failures{}
		f.blocks[block] = s
	}
	if s.back {
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

// due reports whether the cluster's DNS is to be asked.
func (s *failures) due(now time.Time) bool {
	return !s.back && len(s.asked) == failedNames && now.Sub(s.since) >= failedFor && !now.Before(s.until)
}

// begin and end bound the time in which failures count.
func (f *failing) begin(recheck func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recheck, f.blocks, f.given, f.why = recheck, map[Block]*failures{}, nil, nil
	f.suspects.Store(0)
}

func (f *failing) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recheck, f.blocks, f.given, f.why = nil, nil, nil, nil
	f.suspects.Store(0)
}

// resolvers are those that are asked a failed question, to find out who answers it.
type resolvers struct {
	// witness asks the cluster's DNS while our rules are in force, asPod when they
	// are not, and own the block's own upstreams.
	witness, asPod, own func(context.Context, failedMiss) error
}

// look decides which blocks' queries are given back, and reports whether that changed.
// It is called by one goroutine at a time.
func (f *failing) look(ctx context.Context, w resolvers) (changed bool) {
	f.mu.Lock()
	suspects := map[Block]*failures{}
	for block, s := range f.blocks {
		if s.back || s.due(time.Now()) {
			suspects[block] = s
		}
	}
	f.mu.Unlock()
	given, why := map[Block]bool{}, error(nil)
	for block, s := range suspects {
		// From here on only this goroutine changes what was asked, and answered,
		// which forgets it.
		f.mu.Lock()
		asked, back, since := s.asked, s.back, s.backAt
		f.mu.Unlock()
		if len(asked) == 0 {
			continue
		}
		switch {
		case !back:
			f.decideToGive(s, most(ctx, witnessTimeout, asked, w.witness))
		case time.Since(since) > lostInterval/2 && most(ctx, witnessTimeout, asked, w.asPod) != nil:
			f.take(s, true)
		default:
			f.decideToTake(s, most(ctx, recheckTimeout, asked, w.own))
		}
		f.mu.Lock()
		if s.back {
			given[block] = true
			why = fmt.Errorf("misses fail of which the cluster's DNS answers the same questions, as %s", asked[0].question.Name)
		}
		f.mu.Unlock()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if ctx.Err() != nil || f.blocks == nil {
		return false
	}
	changed = !maps.Equal(f.given, given)
	if f.given = given; f.why == nil || why == nil {
		f.why = why
	}
	return changed
}

// join adds to what is known of lost Services the blocks whose misses fail.
func (f *failing) join(config *Config, l *state) (*state, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.why == nil {
		return l, nil
	}
	out := &state{blocks: maps.Clone(f.given), instead: map[netip.Addr]netip.AddrPort{}}
	for _, e := range config.Listen {
		out.instead[e.Addr] = netip.AddrPortFrom(config.Instead(e.Addr), e.Port)
	}
	return out, f.why
}

// decideToGive gives the queries back if somebody else answers.
func (f *failing) decideToGive(s *failures, witness error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	switch {
	case len(s.asked) == 0: // answered meanwhile
	case witness != nil:
		s.asked, s.until = nil, now.Add(askAgain)
		f.suspects.Add(-1)
	default:
		if s.wait == 0 || now.Sub(s.takenAt) > forgiven {
			s.wait = firstBack
		} else {
			s.wait = min(2*s.wait, longestBack)
		}
		s.back, s.backAt, s.good = true, now, 0
	}
}

// decideToTake takes them back when the own upstreams have answered for long enough.
func (f *failing) decideToTake(s *failures, own error) {
	if s.good++; own != nil {
		s.good = 0
	}
	if s.good >= goodRounds && time.Since(s.backAt) >= s.wait {
		f.take(s, false)
	}
}

// take ends what decideToGive began. inVain says that nobody else answers either.
func (f *failing) take(s *failures, inVain bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.back, s.asked, s.takenAt = false, nil, time.Now()
	if inVain {
		s.until = s.takenAt.Add(s.wait)
	}
	f.suspects.Add(-1)
}

// most asks all questions at once and returns nil if all but one of them, or more,
// were answered.
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

// askOwn asks a block's own upstreams. They may not heed the context.
func askOwn(ctx context.Context, q failedMiss) error {
	done := make(chan error, 1)
	go func() {
		w := &recorder.Recorder{}
		rcode, err := q.pass(ctx, w, q.query())
		switch {
		case err == nil && w.Answer == nil:
			err = fmt.Errorf("no answer, %s", dns.RcodeToString[rcode])
		case err == nil:
			err = properly(w.Answer)
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

// properly returns an error for an answer that is none.
func properly(m *dns.Msg) error {
	if m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError {
		return nil
	}
	return fmt.Errorf("answered with %s", dns.RcodeToString[m.Rcode])
}

// resolversOf returns those of a configuration. The cluster's DNS is asked over UDP at an
// address whose queries our rules leave alone, and, once queries are given back, where
// pods ask it.
func (m *Monitor) resolversOf(config *Config, leads func(netip.AddrPort) (bool, error)) resolvers {
	ask := func(ctx context.Context, servers []netip.AddrPort, question *dns.Msg) error {
		err := errNobodyElse
		for _, s := range servers {
			var answer *dns.Msg
			if answer, err = m.askService(ctx, "udp", s, question); err == nil {
				return properly(answer)
			}
		}
		return err
	}
	return resolvers{
		witness: func(ctx context.Context, q failedMiss) error {
			return ask(ctx, config.witnesses(leads), q.query())
		},
		asPod: func(ctx context.Context, q failedMiss) error { return ask(ctx, config.clusterDNS(), q.query()) },
		own:   askOwn,
	}
}

// clusterDNS are the Services that answer for the listen addresses while queries are
// given back; none if one of the addresses has no such.
func (c *Config) clusterDNS() []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range c.Listen {
		service := netip.AddrPortFrom(c.Instead(e.Addr), e.Port)
		if !service.Addr().IsValid() {
			return nil
		}
		if !slices.Contains(out, service) {
			out = append(out, service)
		}
	}
	return out
}

// witnesses are Services of the cluster's DNS that are no listen addresses of ours,
// so that what we ask them goes the way that a pod's query without us does.
func (c *Config) witnesses(leads func(netip.AddrPort) (bool, error)) []netip.AddrPort {
	candidates := c.clusterDNS()
	if len(candidates) == 0 {
		return nil // nobody would answer
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
		there, err := leads(a)
		return err != nil || !there
	})
}

func (c *Config) listensAt(a netip.Addr) bool {
	return slices.ContainsFunc(c.Listen, func(e iptables.Endpoint) bool { return e.Addr == a })
}
