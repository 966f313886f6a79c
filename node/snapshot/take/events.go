package take

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/node/snapshot"
)

// eventCount counts the events of new entries in the background. A nil one
// counts nothing.
type eventCount struct {
	listener *conntrack.Listener
	all, dns atomic.Uint64
	lost     atomic.Bool
	once     sync.Once
	done     chan struct{}
}

func countEvents(settings []sysctl.Setting) (*eventCount, error) {
	if v, ok := sysctl.SettingValue(settings, "nf_conntrack_events"); ok && v == 0 {
		return nil, errors.New("net.netfilter.nf_conntrack_events is 0: the kernel tells nobody of them")
	}
	l, err := conntrack.Listen(nil, conntrack.EventNew)
	if err != nil {
		return nil, err
	}
	e := &eventCount{listener: l, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		for {
			err := l.Receive(func(_ conntrack.EventType, entry *conntrack.Entry) error {
				e.all.Add(1)
				if entry.IsDNS() {
					e.dns.Add(1)
				}
				return nil
			})
			switch {
			case errors.Is(err, conntrack.ErrOverrun):
				e.lost.Store(true)
			case err != nil:
				return // stopped
			}
		}
	}()
	return e, nil
}

func (e *eventCount) restart() {
	if e != nil {
		e.all.Store(0)
		e.dns.Store(0)
		e.lost.Store(false)
	}
}

func (e *eventCount) stop() {
	if e == nil {
		return
	}
	e.once.Do(func() {
		_ = e.listener.Close()
		<-e.done
	})
}

func (e *eventCount) rates(d time.Duration) *snapshot.NewFlows {
	if e == nil || d <= 0 {
		return nil
	}
	return &snapshot.NewFlows{
		PerSecond: float64(e.all.Load()) / d.Seconds(), DNSPerSecond: float64(e.dns.Load()) / d.Seconds(), Lost: e.lost.Load(),
	}
}
