package conntrack

import "github.com/trackless-dns/trackless/internal/counter"

// Rise returns how much the counters of all CPUs grew from before to after,
// with CPU -1. A counter may have wrapped once in between, see [counter.Rise]. A
// CPU that is in one list only, since it went online or offline, is not counted.
func Rise(before, after []CPUStats) CPUStats {
	sum := CPUStats{CPU: -1}
	for i := range after {
		for j := range before {
			if before[j].CPU == after[i].CPU {
				grown := after[i].since(&before[j])
				sum.Add(&grown)
			}
		}
	}
	return sum
}

// since returns by how much each counter rose from before to s.
func (s *CPUStats) since(before *CPUStats) CPUStats {
	rise := func(after, before uint64) uint64 { return uint64(counter.Rise(uint32(before), uint32(after))) }
	return CPUStats{
		CPU:   s.CPU,
		Found: rise(s.Found, before.Found), Invalid: rise(s.Invalid, before.Invalid), Insert: rise(s.Insert, before.Insert),
		InsertFailed: rise(s.InsertFailed, before.InsertFailed), Drop: rise(s.Drop, before.Drop),
		EarlyDrop: rise(s.EarlyDrop, before.EarlyDrop), Error: rise(s.Error, before.Error),
		SearchRestart: rise(s.SearchRestart, before.SearchRestart), ClashResolve: rise(s.ClashResolve, before.ClashResolve),
		ChainTooLong: rise(s.ChainTooLong, before.ChainTooLong),
		Searched:     rise(s.Searched, before.Searched), New: rise(s.New, before.New), Ignore: rise(s.Ignore, before.Ignore),
		Delete: rise(s.Delete, before.Delete), DeleteList: rise(s.DeleteList, before.DeleteList),
	}
}
