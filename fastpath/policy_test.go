package fastpath

import (
	"slices"
	"testing"
)

func TestPolicy(t *testing.T) {
	above := []string{"cancel", "nsid", "bufsize", "notrack", "prometheus", "errors", "local", "any"}
	with := func(change func(*Chain)) Chain {
		c := Chain{Above: above, Count: len(above), Cached: true, Leased: true}
		change(&c)
		return c
	}
	for name, row := range map[string]struct {
		chain  Chain
		reason string
	}{
		"known handlers": {with(func(*Chain) {}), ""},
		"no cache":       {with(func(c *Chain) { c.Cached = false }), "the block has no cache"},
		"no notrack":     {with(func(c *Chain) { c.Leased = false }), "the block has no notrack, so no lease tells that it answers"},
		"keepttl":        {with(func(c *Chain) { c.KeepTTL = true }), "cache has the option keepttl"},
		"view":           {with(func(c *Chain) { c.Filtered = true }), "the block answers only some queries for its zones (view)"},
		"unknown":        {with(func(c *Chain) { c.Above, c.Count = slices.Concat(above, []string{"novel"}), 9 }), "novel must see every query"},
		"rewrite":        {with(func(c *Chain) { c.Above, c.Count = slices.Concat(above, []string{"rewrite"}), 9 }), "rewrite must see every query"},
		"hidden":         {with(func(c *Chain) { c.Count++ }), "1 handlers without a directive must see every query"},
	} {
		t.Run(name, func(t *testing.T) {
			p := Decide(row.chain)
			if p.Reason != row.reason || p.Eligible() != (row.reason == "") {
				t.Errorf("reason %q", p.Reason)
			}
		})
	}
}

func TestSearchpathKeepsDenials(t *testing.T) {
	for _, row := range []struct {
		above []string
		want  bool
	}{{nil, true}, {[]string{"prometheus", "searchpath"}, false}} {
		p := Decide(Chain{Above: row.above, Count: len(row.above), Cached: true, Leased: true})
		if !p.Eligible() || p.Denials != row.want {
			t.Errorf("below %v: denials %v, reason %q", row.above, p.Denials, p.Reason)
		}
	}
}

func TestPolicyReplicates(t *testing.T) {
	if p := Decide(Chain{Above: []string{"bufsize", "prometheus"}, Count: 2, Cached: true, Leased: true, BufSize: 1232}); p.Size != 1232 || !p.Counted {
		t.Errorf("with bufsize and prometheus: %+v", p)
	}
	if p := Decide(Chain{Cached: true, Leased: true}); p.Size != 65535 || p.Counted {
		t.Errorf("without: %+v", p)
	}
}
