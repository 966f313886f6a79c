package conntrack

// Rise returns how much the counters of all CPUs grew from before to after,
// with CPU -1. The kernel keeps 32 bits of each, so a counter that wrapped once
// between the two is counted right; a CPU that is in one list alone, since it
// went on or off line, is not counted.
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

// since returns s less before, each modulo 2^32.
func (s *CPUStats) since(before *CPUStats) CPUStats {
	less := func(a, b uint64) uint64 { return uint64(uint32(a) - uint32(b)) }
	return CPUStats{
		CPU:   s.CPU,
		Found: less(s.Found, before.Found), Invalid: less(s.Invalid, before.Invalid), Insert: less(s.Insert, before.Insert),
		InsertFailed: less(s.InsertFailed, before.InsertFailed), Drop: less(s.Drop, before.Drop),
		EarlyDrop: less(s.EarlyDrop, before.EarlyDrop), Error: less(s.Error, before.Error),
		SearchRestart: less(s.SearchRestart, before.SearchRestart), ClashResolve: less(s.ClashResolve, before.ClashResolve),
		ChainTooLong: less(s.ChainTooLong, before.ChainTooLong),
		Searched:     less(s.Searched, before.Searched), New: less(s.New, before.New), Ignore: less(s.Ignore, before.Ignore),
		Delete: less(s.Delete, before.Delete), DeleteList: less(s.DeleteList, before.DeleteList),
	}
}
