//go:build privileged

package ledger

import (
	"time"
)

type referenceEntry struct {
	began, last, expires time.Time
	firstFromServer      bool
	bothSeen             bool
	kept                 bool
}

func (r *reference) tcp(f Flow, e *referenceEntry, live, fromServer bool, now time.Time) {
	if fromServer && !live {
		return
	}
	if !live || !fromServer && now.Sub(e.last) > r.idle {
		r.flows++
		e = &referenceEntry{began: now}
		r.entries[f] = e
	}
	if !fromServer && now.After(e.began.Add(2*time.Second)) {
		e.kept = true
	}
	e.last, e.expires = now, now.Add(r.timeouts.TCPTimeWait)
	if e.kept {
		e.expires = e.expires.Add(r.idle)
	}
}
