package kernel

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/fastpath"
)

const (
	// gather is how long flows gather in the ring: one wake-up is for many. The ring has
	// room for 20 ms of half a million hits a second.
	gather = 20 * time.Millisecond
	// collectEvery is the least time between two readings of the counts.
	collectEvery = time.Second
)

// Report hands flows, counts and uses of hits over to the accountant and the cache, until
// the context ends. It sleeps while there are no hits, and no class to be freed.
func (p *Program) Report(ctx context.Context, a *fastpath.Accountant, pub *fastpath.Publisher) error {
	flows, err := p.Flows()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = flows.Close() })
	defer func() {
		if stop() {
			_ = flows.Close()
		}
	}()
	a.OnRetire(flows.Wake)
	defer a.OnRetire(nil)
	due := a.Due() // of the next reading of the counts; zero: there were no hits since
	for ctx.Err() == nil {
		err := flows.Wait(due)
		switch {
		case err == nil:
			if due.IsZero() {
				due = time.Now().Add(collectEvery)
			}
			err = drain(ctx, flows, a, due)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, ErrWoken):
			err = nil
		}
		if ctx.Err() != nil {
			break // the ring is closed
		}
		if err == nil && !due.IsZero() && !time.Now().Before(due) {
			due = time.Time{}
			err = a.Collect(p)
			pub.CountUses()
		}
		if err != nil {
			return err
		}
		if due.IsZero() {
			due = a.Due()
		}
	}
	return a.Collect(p)
}

// drain hands flows over as they gather, until there are none or the time until has come.
func drain(ctx context.Context, flows *Flows, a *fastpath.Accountant, until time.Time) error {
	batch := make([]ledger.Flow, 0, 256)
	for any := true; any && time.Now().Before(until) && ctx.Err() == nil; {
		wait(ctx, gather)
		any = false
		err := flows.Each(func(f Flow) {
			any = true
			batch = append(batch, ledger.Flow{Proto: unix.IPPROTO_UDP, Client: f.Client, Server: f.Server})
			if len(batch) == cap(batch) {
				a.Flows(batch)
				batch = batch[:0]
			}
		})
		a.Flows(batch)
		batch = batch[:0]
		if err != nil {
			return err
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
