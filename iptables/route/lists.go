package route

import (
	"sync"
	"time"

	"github.com/jsimonetti/rtnetlink/v2"
)

// Lists are the links and routes of this network namespace for several readers. They are
// listed again after a change, or after some time: a change that the kernel announces has
// to be reported with Changed. The methods may be called from several goroutines at once,
// on threads of one namespace.
type Lists struct {
	mu      sync.Mutex
	listed  time.Time // zero: never
	changed bool
	version int
	links   []rtnetlink.LinkMessage
	routes  []Route
}

const (
	// listAtMost is the least time between two listings: changes come in bursts.
	listAtMost = 100 * time.Millisecond
	// listAtLeast is how old the lists may be without an announced change.
	listAtLeast = 30 * time.Second
)

// Changed reports a change of a link, a route, a rule of the routing policy or a nexthop
// object.
func (l *Lists) Changed() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed = true
}

// Read returns the links that have attributes, and the routes. The version is another one
// after each listing. The caller must not change the lists.
func (l *Lists) Read() (links []rtnetlink.LinkMessage, routes []Route, version int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	age := time.Since(l.listed)
	if l.listed.IsZero() || age > listAtLeast || l.changed && age > listAtMost {
		err = l.list()
	}
	return l.links, l.routes, l.version, err
}

// Renew has the lists read again now, for a link that is not among them.
func (l *Lists) Renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listed = time.Time{}
}

// list lists both. After a fault the next Read tries again.
func (l *Lists) list() (err error) {
	l.listed = time.Time{}
	if l.links, err = Links(); err != nil {
		return err
	}
	if l.routes, err = List(0); err != nil {
		return err
	}
	l.listed, l.changed = time.Now(), false
	l.version++
	return nil
}
