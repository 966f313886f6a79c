// Package podmetrics is the directive podmetrics: metrics by pod, of the entries in the
// connection tracking table and of queries. Their number is bounded whatever happens: the
// pods with the most have series of their own, all others share one.
package podmetrics

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	clog "github.com/coredns/coredns/plugin/pkg/log"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/conntrack/reread"
	"github.com/trackless-dns/trackless/kubeapi"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

const directive = "podmetrics"

var log = clog.NewWithPlugin(directive)

// The table is read after a scrape, and not again before shortestRest, or restShare times as
// long as the reading took: at most 2 % of one CPU.
const (
	shortestRest = 10 * time.Second
	restShare    = 50
)

// A counter reads the table while somebody scrapes. All server blocks share one.
type counter struct {
	read     func(ctx context.Context, book *names.Book) (*groups.Collector, error)
	watch    func(ctx context.Context, pods func(map[netip.Addr]names.Owner))
	rest     time.Duration
	scraped  chan struct{} // has one element after a scrape
	latest   atomic.Pointer[[]groups.Row]
	pods     atomic.Pointer[map[netip.Addr]names.Owner] // nil: not known
	node     atomic.Pointer[map[netip.Addr]names.Owner] // its own addresses
	queries  queries
	top      atomic.Int64
	warn     func(format string, args ...any)
	complain bool // no failure was logged since the last reading that worked

	mu     sync.Mutex
	users  int // server blocks, those of the next configuration too while it starts
	cancel context.CancelFunc
	ended  chan struct{}
}

func newCounter() *counter {
	return &counter{read: readTable, watch: watchPods, warn: log.Warningf, rest: shortestRest, scraped: make(chan struct{}, 1)}
}

// start begins to count for a server block.
func (c *counter) start(top int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.top.Store(int64(top))
	if c.users++; c.users > 1 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel, c.ended, c.complain = cancel, make(chan struct{}), true
	c.readNode()
	c.queries.start()
	go c.run(ctx, c.ended)
}

// stop ends what start began. Without a server block nothing is counted or exported.
func (c *counter) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users--; c.users > 0 {
		return
	}
	c.cancel()
	<-c.ended
	c.latest.Store(nil)
	c.queries.stop()
}

// readNode reads the addresses of the node.
func (c *counter) readNode() {
	node := names.OfNode("")
	c.node.Store(&node)
}

// of returns a map; nil if there is none.
func of(m *atomic.Pointer[map[netip.Addr]names.Owner]) map[netip.Addr]names.Owner {
	if p := m.Load(); p != nil {
		return *p
	}
	return nil
}

func (c *counter) run(ctx context.Context, ended chan<- struct{}) {
	defer close(ended)
	var watch sync.WaitGroup
	defer c.pods.Store(nil)
	defer watch.Wait()
	watch.Go(func() {
		c.watch(ctx, func(owners map[netip.Addr]names.Owner) { c.pods.Store(&owners) })
	})
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.scraped:
		}
		began := time.Now()
		c.readNode()
		c.count(ctx, names.New(of(&c.node), of(&c.pods)))
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(c.rest, restShare*time.Since(began))):
		}
	}
}

// PodAt returns the pod with an address, as namespace/name; "" if it is not known, or if no
// server block has the directive.
func PodAt(a netip.Addr) string { return process.podAt(a) }

func (c *counter) podAt(a netip.Addr) string {
	return of(&c.pods)[a].String()
}

// count reads the table once.
func (c *counter) count(ctx context.Context, book *names.Book) {
	collector, err := c.read(ctx, book)
	if err != nil && ctx.Err() == nil && c.complain && !errors.Is(err, conntrack.ErrInterrupted) {
		c.complain = false
		c.warn("the connection tracking table cannot be read, so coredns_conntrack_pod_entries is missing or old: %v", err)
	}
	if collector == nil {
		return
	}
	if err == nil {
		c.complain = true
	}
	rows := collector.Rows(groups.Pod)
	c.latest.Store(&rows)
}

// quiet shows no progress.
type quiet struct{}

func (quiet) Begin(string, uint64) reread.Counter { return quiet{} }
func (quiet) Again(error, int)                    {}
func (quiet) Step()                               {}
func (quiet) Stop()                               {}

func readTable(ctx context.Context, book *names.Book) (*groups.Collector, error) {
	conn, err := conntrack.Dial(nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return groups.Reading{Book: book, By: []groups.By{groups.Pod}, Progress: quiet{}}.Do(ctx, conn)
}

// watchPods follows the pods of this node in the Kubernetes API until the context ends.
func watchPods(ctx context.Context, pods func(map[netip.Addr]names.Owner)) {
	config, err := kubeapi.InCluster("/")
	if err != nil {
		log.Warningf("the names of pods are not known, so the label pod_name has addresses: %v", err)
		return
	}
	node := kubeapi.NodeName("")
	kubeapi.New(config).WatchPods(ctx, node, kubeapi.Handler[kubeapi.Pod]{
		Changed: func(list []kubeapi.Pod) { pods(names.OfPods(list)) },
		Failed: func(err error) {
			if err != nil {
				log.Warningf("the names of new pods on node %s are not known, so the label pod_name has their addresses: %v", node, kubeapi.ForNames(err))
			}
		},
	})
}
