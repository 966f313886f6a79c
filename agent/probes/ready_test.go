package probes

import (
	"net/netip"
	"testing"
)

func TestQuestionsOfOurOwn(t *testing.T) {
	var q Questions
	mine, other := netip.MustParseAddrPort("10.96.0.10:4000"), netip.MustParseAddrPort("10.96.0.10:4001")
	q.Came(mine) // no probe waits
	arrived := q.expect(mine)
	q.Came(other)
	select {
	case <-arrived:
		t.Fatal("another query is taken for ours")
	default:
	}
	q.Came(mine)
	q.Came(mine)
	select {
	case <-arrived:
	default:
		t.Fatal("our query is not seen")
	}
	q.forget(mine)
	if q.n.Load() != 0 || len(q.out) != 0 {
		t.Error("questions are left")
	}
}
