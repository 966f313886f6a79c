//go:build privileged || load

package ledger

import (
	"time"

	"golang.org/x/sys/unix"
)

func (r *reference) count(now time.Time) Counts {
	var n [2][2]uint64
	for f, e := range r.entries {
		if !e.expires.After(now) {
			delete(r.entries, f)
			continue
		}
		proto, family := 0, 0
		if f.Proto == unix.IPPROTO_TCP {
			proto = 1
		}
		if f.Client.Addr().Is6() {
			family = 1
		}
		n[proto][family]++
	}
	return Counts{UDP4: n[0][0], UDP6: n[0][1], TCP4: n[1][0], TCP6: n[1][1]}
}
