package store

import "time"

// History is how an answer was used in another store. The zero value is that of a new
// answer. Entry has Hits and Seen besides.
type History struct {
	Uses   uint32 // as Record.Uses
	Proven bool   // it was used while it was new: eviction takes it later
	Retry  Time   // no refresh before; 0: at any time
}

// History returns how the record was used.
func (r *Record) History(now Time) History {
	h := History{Uses: r.Uses(), Proven: r.state == stateMain}
	if at := r.retry.Load(); at != 0 {
		h.Retry = now.before(at)
	}
	return h
}

// LastUse returns the last use that Hits counts.
func (r *Record) LastUse(now Time) Time { return now.before(r.seen.Load()) }

// before returns the time of which millis is given, if it is at most 24 days from now.
func (t Time) before(millis uint32) Time {
	return t + Time(int32(millis-t.millis()))*Time(time.Millisecond)
}
