package health

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// written returns what a monitor gives to another process.
func written(t *testing.T, m *Monitor) (piece []byte) {
	t.Helper()
	if err := m.WriteState(time.Now(), func(p []byte) error { piece = slices.Clone(p); return nil }); err != nil {
		t.Fatal(err)
	}
	return piece
}

// TestFailoverGoesOn: a block that has failed over does so in the next process before any miss
// has failed there, if the cluster's DNS answers.
func TestFailoverGoesOn(t *testing.T) {
	for _, tc := range []struct {
		name    string
		label   string
		cluster error
		over    bool
	}{
		{"the same block", "a", nil, true},
		{"the cluster's DNS does not answer any more", "a", errors.New("no answer"), false},
		{"another block", "b", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				before := newFailingNode(t)
				before.block.label = "a"
				before.misses(failedNames, "")
				if before.check(); !before.over() {
					t.Fatal("no failover")
				}
				next := newFailingNode(t)
				next.block.label, next.cluster = tc.label, tc.cluster
				checked := 0
				next.f.recheck = func() { checked++ }
				taken, err := next.m.ReadState([]Block{&stubBlock{label: "c"}, &next.block}, written(t, &before.m))
				if fits := tc.label == "a"; err != nil || (taken == 1) != fits || (checked == 1) != fits {
					t.Errorf("%d blocks taken, %d checks asked for, %v", taken, checked, err)
				}
				if next.check(); next.over() != tc.over {
					t.Errorf("failed over: %t, want %t", next.over(), tc.over)
				}
				// The block's own upstreams are asked as after any other failover: here they answer.
				if tc.over && next.rounds() > time.Minute {
					t.Error("no failback")
				}
			})
		})
	}
}

// TestDeletedService: the next process knows that an upstream that is in no rules any more was a Service.
func TestDeletedService(t *testing.T) {
	var before, next Monitor
	a := netip.MustParseAddrPort("10.96.0.99:53")
	there, gone := func(netip.AddrPort) (bool, error) { return true, nil }, func(netip.AddrPort) (bool, error) { return false, nil }
	if _, lost, err := before.lost(Group{Addrs: []netip.AddrPort{a}}, there); lost || err != nil {
		t.Fatal(lost, err)
	}
	if _, lost, _ := next.lost(Group{Addrs: []netip.AddrPort{a}}, gone); lost {
		t.Fatal("lost before it was known")
	}
	if taken, err := next.ReadState(nil, written(t, &before)); taken != 1 || err != nil {
		t.Fatal(taken, err)
	}
	if asks, lost, err := next.lost(Group{Addrs: []netip.AddrPort{a}}, gone); !asks || !lost || err != nil {
		t.Errorf("asks a Service: %t, lost: %t, %v", asks, lost, err)
	}
}

// TestSuspectOfKnown: what misses have shown here is newer.
func TestSuspectOfKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFailingNode(t)
		n.miss(t.Context(), "")
		if n.f.suspect(&n.block, make([]dns.Question, failedNames)) {
			t.Error("taken")
		}
		n.f.end()
		if n.f.suspect(&n.block, make([]dns.Question, failedNames)) {
			t.Error("taken by a monitor that is stopped")
		}
	})
}

// TestHostileState: content that no instance writes is refused as a whole.
func TestHostileState(t *testing.T) {
	question := dns.Question{Name: "www.example.org.", Qtype: dns.TypeA, Qclass: dns.ClassINET}
	good := func() handed {
		return handed{Failing: []suspected{{Block: "a", Questions: []dns.Question{question, question, question}}}}
	}
	for name, edit := range map[string]func(h *handed){
		"no questions":       func(h *handed) { h.Failing[0].Questions = nil },
		"many questions":     func(h *handed) { h.Failing[0].Questions = make([]dns.Question, 99) },
		"no name":            func(h *handed) { h.Failing[0].Questions[1].Name = "" },
		"a name without end": func(h *handed) { h.Failing[0].Questions[1].Name = "www" },
		"a long name":        func(h *handed) { h.Failing[0].Questions[1].Name = strings.Repeat("a.", 2000) },
		"many blocks":        func(h *handed) { h.Failing = slices.Repeat(h.Failing, maxSuspected+1) },
		"many Services":      func(h *handed) { h.Services = make([]netip.Addr, maxServices+1) },
	} {
		h := good()
		edit(&h)
		piece, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		var m Monitor
		m.failing.begin(func() {})
		if taken, err := m.ReadState([]Block{&stubBlock{label: "a"}}, piece); !errors.Is(err, errState) || taken != 0 || len(m.failing.blocks) != 0 {
			t.Errorf("%s: %d taken, %v", name, taken, err)
		}
	}
	for _, piece := range []string{"", "null", "[]", `{"services":["x"]}`, `{"failing":7}`, `{"services":[""]}`} {
		var m Monitor
		if taken, err := m.ReadState(nil, []byte(piece)); taken != 0 || len(m.known()) != 0 {
			t.Errorf("%s: %d taken, %v", piece, taken, err)
		}
	}
}

func FuzzReadState(f *testing.F) {
	f.Add([]byte(`{"services":["10.96.0.10"],"failing":[{"block":"a","questions":[{"Name":"a.","Qtype":1,"Qclass":1},{"Name":"b.","Qtype":1,"Qclass":1},{"Name":"c.","Qtype":1,"Qclass":1}]}]}`))
	f.Fuzz(func(t *testing.T, piece []byte) {
		var m Monitor
		m.failing.begin(func() {})
		block := &stubBlock{label: "a"}
		if _, err := m.ReadState([]Block{block}, piece); err != nil {
			return
		}
		// Whatever was taken can be asked.
		ask := func(_ context.Context, q failedMiss) error { _, err := q.query().Pack(); return err }
		m.failing.check(t.Context(), resolvers{bypass: ask, asPod: ask, own: ask})
	})
}
