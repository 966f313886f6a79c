//go:build privileged

package kernel

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack/ledger"
	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/plugin/cache/engine"
	"github.com/trackless-dns/trackless/plugin/cache/store"
)

// After a reload the kernel may have no answers, so that no hit wakes Report. The classes
// of the old configuration become free nevertheless.
func TestReportFreesClassesWithoutHits(t *testing.T) {
	t.Parallel()
	p := load(t)
	e, err := engine.New(engine.Options{Store: store.Options{Bytes: store.MinBytes}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	accountant := &fastpath.Accountant{Ledger: ledger.New(ledger.Config{}), Idle: func() bool { return true }}
	publisher := fastpath.NewPublisher(p.Table, accountant, quiet{})
	to := netip.AddrPortFrom(node4, 53)
	n, err := publisher.Listener(to)
	if err != nil {
		t.Fatal(err)
	}
	announcer := publisher.Announce(fastpath.Block{
		Engine: e, Listeners: map[netip.AddrPort]uint8{to: n},
		Zone: func([]byte) string { return "." }, Counters: func(fastpath.Class) fastpath.Counters { return uncounted{} },
	})
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	defer func() { cancel(); tasks.Wait() }()
	tasks.Go(func() { publisher.Run(ctx) })
	tasks.Go(func() {
		if err := p.Report(ctx, accountant, publisher); err != nil {
			t.Error(err)
		}
	})
	c := newChanging(t, 0)
	c.replace(e)
	announcer.Hit(&net.UDPAddr{IP: net.IP(pod4.AsSlice()), Port: 40000}, &net.UDPAddr{IP: net.IP(node4.AsSlice()), Port: 53}, c.key)
	testwait.True(t, 10*time.Second, "published", func() bool { return publisher.Len() == 1 })
	announcer.Close()
	if accountant.Due().IsZero() {
		t.Fatal("no class is to be freed")
	}
	testwait.True(t, 30*time.Second, "the class is free", func() bool { return accountant.Due().IsZero() })
}
