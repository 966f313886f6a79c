// Package counter computes by how much a counter of the kernel rose between two
// readings.
package counter

// Rise returns the rise from before to after. T is as wide as the kernel's
// counter, which wraps to 0 after the largest T.
//
// A counter that fell has wrapped, or it began at 0 again: its module was loaded
// again, or its table was made again. It has wrapped if that takes a rise of less
// than half its range, else it began again and rose by after. A counter of
// 64 bits falls by 2^63 or more only if it wraps, so one rule is right for both.
func Rise[T uint32 | uint64](before, after T) T {
	rise := after - before
	if after < before && rise > ^T(0)/2 {
		return after
	}
	return rise
}
