package contents

import (
	"cmp"
	"slices"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/plugin/cache/store"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// FlushCache implements control.CacheHolder.
func (h Holder) FlushCache(s control.CacheScope) (control.CacheRemoved, error) {
	removed := control.CacheRemoved{Caches: []control.CacheFlushed{}}
	scope, err := scopeOf(s)
	if err != nil {
		return removed, err
	}
	total := 0
	err = h.Each(func(c Cache) {
		n := control.CacheFlushed{CacheBlock: c.CacheBlock}
		c.Engine.Flush(scope, func(key wire.Key, r *store.Record) {
			switch rcode := r.Flags().Rcode(); {
			case r.Kind() != store.Negative:
				n.Positive++
			case rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError:
				n.Denials++
			default:
				n.Failures++
			}
			if !scope.Asks(key) {
				n.OtherNames++
			}
		})
		c.Flushed()
		removed.Caches = append(removed.Caches, n)
		total += n.Answers()
	})
	if err != nil {
		return removed, err
	}
	slices.SortStableFunc(removed.Caches, func(a, b control.CacheFlushed) int {
		return cmp.Or(cmp.Compare(a.ServerBlock, b.ServerBlock), cmp.Compare(a.View, b.View))
	})
	h.Log.Infof("Flushed %s by hand: %d answers removed", describe(s), total)
	return removed, nil
}

func describe(s control.CacheScope) string {
	switch {
	case s.Name != "":
		return "the name " + dns.Fqdn(s.Name)
	case s.Zone != "":
		return "the zone " + dns.Fqdn(s.Zone)
	}
	return "all names"
}
