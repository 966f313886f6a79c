package fastpath

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/agent/policies"
	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/fastpath/attach"
	"github.com/trackless-dns/trackless/fastpath/kernel"
	"github.com/trackless-dns/trackless/iptables/route"
	"github.com/trackless-dns/trackless/plugin/cache/budget"
	"github.com/trackless-dns/trackless/plugin/notrack"
)

// running is the kernel's fast path of this process, if there is one.
type running struct {
	open    func(settings) (*path, error)
	mu      sync.Mutex
	current *configuration
	path    *path  // nil: none
	problem string // why there is none although the configuration wants one
	blocks  []*decided
	loaded  *load // of the configuration in force; nil: nothing is announced
}

// process is the one of this process. It is a variable, since caddy and Prometheus call
// plugins without a context.
var process = running{open: open}

// path is a loaded program with all that serves it.
type path struct {
	settings  settings
	program   *kernel.Program
	publisher *fastpath.Publisher
	watcher   *attach.Watcher
	cancel    context.CancelFunc
	tasks     sync.WaitGroup
	join      func(tell func(a netip.Addr, until time.Time)) (leave func())
	leave     func() // the gate

	untils sync.Map // by address, until when the program is open
}

// follow puts a configuration in force: it starts, changes or stops the fast path. A
// fault is logged, and CoreDNS answers.
func (r *running) follow(c *configuration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unload()
	r.current, r.problem = c, ""
	if r.path != nil && (c.kernel == off || r.path.settings != c.settings) {
		r.close()
	}
	blocks := c.decide()
	sockets.follow(c, blocks)
	r.announce(blocks)
}

// announce announces the answers of the blocks, and reports for which of them it does.
func (r *running) announce(blocks []*decided) {
	r.blocks = blocks
	if r.current.kernel == off {
		report(blocks, r.missing("the Corefile has kernel off"))
		return
	}
	if err := r.load(blocks); err != nil {
		r.problem = err.Error()
		log.Warningf("the kernel answers no queries, CoreDNS answers all: %v", err)
	}
	report(blocks, r.missing(r.problem))
}

// missing returns why no fast path answers, given why the kernel does not: sockets may.
func (r *running) missing(problem string) string {
	if r.current.sockets > 0 {
		return ""
	}
	return problem
}

// load announces to the path, which it opens if there is none.
func (r *running) load(blocks []*decided) error {
	if r.path == nil {
		p, err := r.open(r.current.settings)
		if err != nil {
			return err
		}
		r.path = p
	}
	l, err := r.path.load(blocks)
	if err != nil {
		r.close()
		return err
	}
	r.loaded = l
	return nil
}

// unload ends what was announced for the configuration in force.
func (r *running) unload() {
	if r.loaded != nil {
		r.loaded.close()
		r.loaded = nil
	}
}

// leave ends a configuration, unless another one is in force by now.
func (r *running) leave(c *configuration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != c {
		return
	}
	r.end()
}

// stop is the last step of a process.
func (r *running) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end()
}

func (r *running) end() {
	r.unload()
	r.close()
	r.current, r.blocks, r.problem = nil, nil, ""
	blockInfo.Reset()
}

func (r *running) close() {
	if r.path != nil {
		r.path.close()
		r.path = nil
	}
}

// open loads the program and begins to attach it.
func open(s settings) (*path, error) {
	size := s.size
	if size == 0 {
		// Of a small memory limit the cache gets the larger part.
		size = min(kernel.DefaultSize, budget.Default("/", 1)/4)
	}
	program, err := kernel.Load(size)
	if err != nil {
		return nil, err
	}
	accountant := notrack.Accountant()
	accountant.Limit(program.Classes())
	p := &path{settings: s, program: program, publisher: fastpath.NewPublisher(program.Table, accountant, log)}
	lists := &route.Lists{}
	leave, forget := leaveBy(s.kernel, lists)
	p.watcher = attach.New(attach.Config{
		Program: program.BPF(), Lists: lists, Log: log, Open: p.isOpen, Bridge: program.Bridge,
		Uplinks: func() ([]string, error) { return notrack.Uplinks(lists) },
		Leave:   leave, Force: s.kernel == force,
	})
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.tasks.Go(func() { p.publisher.Run(ctx) })
	p.tasks.Go(func() {
		defer forget()
		if err := p.watcher.Run(ctx); err != nil {
			log.Errorf("the kernel answers no queries, CoreDNS answers all: %v", err)
		}
	})
	p.tasks.Go(func() {
		if err := program.Report(ctx, accountant, p.publisher); err != nil {
			log.Errorf("queries that the kernel answers are missing from the metrics: %v", err)
		}
	})
	p.join = notrack.JoinGate
	p.leave = p.join(p.door)
	return p, nil
}

// leaveBy returns what tells why a device is left to CoreDNS, and what ends its reading.
func leaveBy(m mode, lists *route.Lists) (leave func(name string, index int) string, forget func()) {
	if m == force {
		return func(string, int) string { return "" }, func() {}
	}
	r := &policies.Reader{Endpoints: notrack.Listening, Lists: lists}
	return r.Why, r.Close
}

// door opens the program at an address until a time.
func (p *path) door(a netip.Addr, until time.Time) {
	p.publisher.EachListener(a, func(n uint8) { p.program.Open(n, until) })
	p.untils.Store(a, until)
}

// isOpen reports whether the program is open at an address.
func (p *path) isOpen() (open bool) {
	now := time.Now()
	p.untils.Range(func(_, until any) bool {
		open = until.(time.Time).After(now)
		return !open
	})
	return open
}

func (p *path) close() {
	p.leave()
	p.cancel()
	p.tasks.Wait()
	notrack.Accountant().Forget()
	if err := p.program.Close(); err != nil {
		log.Errorf("unload the kernel program: %v", err)
	}
}

// load is one configuration that is announced to a path.
type load struct {
	path       *path
	announcers []*fastpath.Announcer
	caches     []cacher
	listeners  []netip.AddrPort
}

// load begins to announce the answers of the blocks that are eligible.
func (p *path) load(blocks []*decided) (*load, error) {
	l := &load{path: p}
	sizes := map[netip.AddrPort]uint16{}
	for _, b := range blocks {
		for _, at := range b.listen {
			if size, known := sizes[at]; !known || b.policy.Size < size {
				sizes[at] = b.policy.Size
			}
		}
	}
	for at, size := range sizes {
		n, err := p.publisher.Listener(at)
		if err == nil {
			err = p.program.Listen(at, n, size)
		}
		if err != nil {
			l.close()
			return nil, err
		}
		l.listeners = append(l.listeners, at)
	}
	for _, b := range blocks {
		if !b.policy.Eligible() {
			continue
		}
		announced := fastpath.Block{Engine: b.cache.Engine(), Listeners: map[netip.AddrPort]uint8{}, Denials: b.policy.Denials, Zone: b.zone, Counters: b.counters}
		for _, at := range b.listen {
			announced.Listeners[at], _ = p.publisher.Listener(at) // it has its number
		}
		a := p.publisher.Announce(announced)
		b.cache.Announce(a)
		l.announcers, l.caches = append(l.announcers, a), append(l.caches, b.cache)
	}
	p.rejoin() // the listeners have their numbers only now
	return l, nil
}

// rejoin has the gate tell all leases again. The path leaves only when it has joined:
// between the two the gate might be closed.
func (p *path) rejoin() {
	leave := p.leave
	p.leave = p.join(p.door)
	leave()
}

func (l *load) close() {
	for _, c := range l.caches {
		c.Announce(nil)
	}
	for _, a := range l.announcers {
		a.Close()
	}
	for _, at := range l.listeners {
		if err := l.path.program.Ignore(at); err != nil {
			log.Errorf("%s: the kernel program still reads the queries, and answers none: %v", at, err)
		}
	}
}
