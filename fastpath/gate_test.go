package fastpath

import (
	"maps"
	"net/netip"
	"testing"
	"time"
)

func TestGate(t *testing.T) {
	a, b := netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("169.254.20.10")
	one, two := time.Unix(1, 0), time.Unix(2, 0)
	var g Gate
	told := map[netip.Addr]time.Time{}
	door := func(a netip.Addr, until time.Time) { told[a] = until }
	leave := g.Join(door)
	for _, step := range []struct {
		name string
		do   func()
		want map[netip.Addr]time.Time
	}{
		{"both are held", func() { g.Held(map[netip.Addr]time.Time{a: one, b: one}) }, map[netip.Addr]time.Time{a: one, b: one}},
		{"one is renewed", func() { g.Held(map[netip.Addr]time.Time{a: two, b: one}) }, map[netip.Addr]time.Time{a: two}},
		{"one is lost", func() { g.Held(map[netip.Addr]time.Time{a: two}) }, map[netip.Addr]time.Time{b: {}}},
		{"a fast path leaves", func() { leave(); g.Held(map[netip.Addr]time.Time{a: one}) }, map[netip.Addr]time.Time{}},
		{"held without one", func() { g.Held(map[netip.Addr]time.Time{a: two}) }, map[netip.Addr]time.Time{}},
		{"a fast path joins late", func() { g.Join(door) }, map[netip.Addr]time.Time{a: two}},
		{"closed", g.Close, map[netip.Addr]time.Time{a: {}}},
		{"closed again", g.Close, map[netip.Addr]time.Time{}},
	} {
		clear(told)
		if step.do(); !maps.Equal(told, step.want) {
			t.Errorf("%s: told %v, want %v", step.name, told, step.want)
		}
	}
}
