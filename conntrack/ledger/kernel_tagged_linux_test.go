//go:build privileged || load

package ledger

import (
	"fmt"
	"strings"
	"time"
)

type observations []observation

// check compares each count of the kernel with the ledger's counts within a lag: a busy
// machine may run the server that long after the kernel saw the packet. A few counts may
// disagree.
func (run observations) check(p *problems, lag time.Duration) (peak uint64) {
	const slack = 2
	var disagree []string
	for _, o := range run {
		peak = max(peak, o.kernel.Total())
		for class, count := range countsByClass {
			least, most := count(o.before), count(o.before)
			for _, near := range run {
				if near.from.Before(o.to.Add(lag)) && near.to.After(o.from.Add(-lag)) {
					least = min(least, count(near.before), count(near.after))
					most = max(most, count(near.before), count(near.after))
				}
			}
			if k := count(o.kernel); k+slack < least || k > most+slack {
				disagree = append(disagree, fmt.Sprintf("after %v, %s: the kernel has %d entries, the ledger %d to %d",
					o.from.Sub(run[0].from).Round(ms), class, k, least, most))
			}
		}
	}
	if n := len(run) * len(countsByClass); len(disagree) > n/50 {
		p.Errorf("%d of %d counts disagree:\n%s", len(disagree), n, strings.Join(disagree, "\n"))
	}
	return peak
}
