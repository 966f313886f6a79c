package fastpath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testwait"
)

// hits asks for a name that is cached, and reports whether it was answered at a socket of
// ours.
func (b *both) hits(t *testing.T, name string) bool {
	t.Helper()
	query, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	b.once(t, query) // it is stored then, soon
	before := b.listener.group.Counts().Hits
	b.once(t, query)
	return b.listener.group.Counts().Hits > before
}

// Each key of a server block has a configuration of CoreDNS's, and all of them are the block.
func TestAllKeysOfABlock(t *testing.T) {
	b := newBoth(t)
	for _, name := range []string{"n0.sub.test.", "n0.other.test.", "n0.cached.test."} {
		testwait.True(t, 5*time.Second, name+" is answered at a socket of ours", func() bool { return b.hits(t, name) })
	}
}

// A panic in a plugin is answered as at CoreDNS's own socket, and nothing ends.
func TestPanicsInAPlugin(t *testing.T) {
	b := newBoth(t)
	for _, name := range []string{"panic.passed.test.", "panic.cached.test."} {
		query, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if replies := b.once(t, query); replies[0] == nil || !same(replies[0], replies[1]) {
			t.Errorf("%s: ordinary\n%s\nat a socket of ours\n%s", name, text(replies[0]), text(replies[1]))
		}
	}
	testwait.True(t, 5*time.Second, "cached names are answered", func() bool { return b.hits(t, "n0.cached.test.") })
}

// Queries that are under way when the process ends are answered.
func TestQueriesUnderWayAtTheEnd(t *testing.T) {
	b := newBoth(t)
	query, err := new(dns.Msg).SetQuestion("slow.passed.test.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	c := b.clients(t)
	defer c.close()
	const fast = 1
	if _, err := c[fast].Write(query); err != nil {
		t.Fatal(err)
	}
	testwait.True(t, 5*time.Second, "the query is with CoreDNS", func() bool { return b.listener.group.Counts().Passed == 1 })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.tier.stop()
	}()
	testwait.True(t, 5*time.Second, "the sockets are to close", func() bool {
		b.tier.mu.Lock()
		defer b.tier.mu.Unlock()
		return len(b.tier.listeners) == 0
	})
	select {
	case <-ended:
		t.Error("the process would end before the answer")
	default:
	}
	close(b.held)
	if reply := receive(c[fast], time.Now().Add(patience)); reply == nil {
		t.Error("no answer")
	}
	<-ended
}

// Sockets that the next load does not take are closed, and the others stay.
func TestSocketsOfALoadBefore(t *testing.T) {
	for _, row := range []struct {
		name  string
		taken bool
	}{{"taken", true}, {"not taken", false}} {
		t.Run(row.name, func(t *testing.T) {
			b := newBoth(t)
			next := &configuration{options: b.config.options, blocks: b.config.blocks}
			b.tier.follow(next, next.decide())
			if row.taken {
				b.tier.commit(next, b.server, nil)
			}
			b.tier.leaveOld(b.config)
			if n := len(b.tier.listeners); n != 1 {
				t.Fatalf("sockets at %d addresses while servers may still begin", n)
			}
			b.tier.removeOld()
			if got := len(b.tier.listeners) == 1; got != row.taken {
				t.Errorf("there are sockets: %t", got)
			}
		})
	}
}

// The tier leaves the gate only when it has joined again, so that it misses no close.
func TestTierMissesNoClose(t *testing.T) {
	b := newBoth(t)
	joined, least := 1, 1
	b.tier.join = func(func(netip.Addr, time.Time)) func() {
		joined++
		return func() {
			joined--
			least = min(least, joined)
		}
	}
	b.tier.leave = func() { joined-- }
	b.tier.commit(b.config, b.server, nil)
	b.tier.commit(b.config, b.server, nil)
	if least != 1 || joined != 1 {
		t.Errorf("the tier has joined %d times, and %d at least", joined, least)
	}
}

// An IPv4 address may be written as one of IPv6.
func TestMappedAddress(t *testing.T) {
	b := newBoth(t)
	b.tier.leaveOld(b.config)
	mapped := netip.AddrPortFrom(netip.AddrFrom16(b.listener.group.At().Addr().As16()), b.listener.group.At().Port())
	b.tier.follow(b.config, b.config.decide())
	server, err := dnsserver.NewServer("dns://"+mapped.String(), b.config.blocks[0].configs)
	if err != nil {
		t.Fatal(err)
	}
	l := b.tier.commit(b.config, server, nil)
	if l == nil {
		t.Fatal("no sockets of ours")
	}
	if at := l.group.At(); at != b.listener.group.At() {
		t.Errorf("the sockets are at %s", at)
	}
}
