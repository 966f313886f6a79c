package summary

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

// A Rate is one second of events. Its JSON names do not change.
type Rate struct {
	Time       time.Time `json:"time"`
	New        uint64    `json:"new"`
	Update     uint64    `json:"update"`
	Destroy    uint64    `json:"destroy"`
	NewDNS     uint64    `json:"new_dns"`
	DestroyDNS uint64    `json:"destroy_dns"`
	Lost       uint64    `json:"overruns"`
	Entries    uint64    `json:"entries"`
	Limit      uint64    `json:"limit"`
}

// Rates counts events that match the filter and passes the counts to fn every second. It
// returns fn's error, or nil after ctx is done. Whoever ends ctx must also let the
// listener's deadline pass.
func Rates(ctx context.Context, l *conntrack.Listener, c *conntrack.Conn, f *conntrack.Filter, fn func(*Rate) error) error {
	var counts rateCounter
	failed := make(chan error, 1)
	go func() { failed <- counts.listen(l, f.Matcher()) }()

	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			}
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return err
		case now := <-tick.C:
			entries, limit, err := c.Count()
			if err != nil {
				return err
			}
			r := counts.take()
			r.Time, r.Entries, r.Limit = now.UTC().Truncate(time.Millisecond), uint64(entries), uint64(limit)
			if err := fn(&r); err != nil {
				return err
			}
		}
	}
}

// A rateCounter counts the events of the second that runs.
type rateCounter struct {
	mu   sync.Mutex
	rate Rate
}

// listen counts until the listener fails or its deadline passes.
func (c *rateCounter) listen(l *conntrack.Listener, match func(*conntrack.Entry) bool) error {
	for {
		err := l.Receive(func(t conntrack.EventType, e *conntrack.Entry) error {
			if match(e) {
				c.mu.Lock()
				c.rate.count(t, e.IsDNS())
				c.mu.Unlock()
			}
			return nil
		})
		switch {
		case errors.Is(err, conntrack.ErrOverrun):
			c.mu.Lock()
			c.rate.Lost++
			c.mu.Unlock()
		case err != nil:
			return err
		}
	}
}

// take returns the count and begins at 0 again.
func (c *rateCounter) take() Rate {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.rate
	c.rate = Rate{}
	return r
}

func (r *Rate) count(t conntrack.EventType, dns bool) {
	var one uint64
	if dns {
		one = 1
	}
	switch t {
	case conntrack.EventNew:
		r.New++
		r.NewDNS += one
	case conntrack.EventUpdate:
		r.Update++
	case conntrack.EventDestroy:
		r.Destroy++
		r.DestroyDNS += one
	}
}
