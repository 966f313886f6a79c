package generator

import (
	"time"

	"golang.org/x/sys/unix"
)

// atOnce is how many queries are sent, and answers received, by one system call.
const atOnce = 64

// schedule says when queries are due, as times since the first one. It never changes.
type schedule struct {
	interval time.Duration
	queries  int
}

// due is when the n-th query is.
func (s schedule) due(n int) time.Duration { return time.Duration(n) * s.interval }

// dueBy is how many queries are due until then.
func (s schedule) dueBy(now time.Duration) int {
	return min(int(now/s.interval)+1, s.queries)
}

// flight are the queries of a schedule. Their ids are the lower bits of their numbers.
type flight struct {
	schedule
	sent      int
	over      []bool // by number: it is answered
	latencies []time.Duration
}

func newFlight(s schedule) *flight {
	return &flight{schedule: s, over: make([]bool, s.queries), latencies: make([]time.Duration, 0, s.queries)}
}

// number is the number of the last query that was sent with the id, below 0 if none was.
func (f *flight) number(id uint16) int {
	last := f.sent - 1
	return last - int(uint16(last)-id)
}

// answered notes the answer to a query, and reports whether it was waited for.
func (f *flight) answered(id uint16, now time.Duration) bool {
	n := f.number(id)
	if n < 0 || f.over[n] {
		return false
	}
	f.over[n] = true
	f.latencies = append(f.latencies, now-f.due(n))
	return true
}

// done reports whether all queries are answered.
func (f *flight) done() bool { return len(f.latencies) == f.queries }

// lose counts all queries without an answer as lost, also those that could not be sent.
// They have been waited for until now.
func (f *flight) lose(now time.Duration) {
	for n, over := range f.over {
		if !over {
			f.latencies = append(f.latencies, now-f.due(n))
		}
	}
}

// atRate plays a load at a rate. It looks for answers all the time, since a sleep would
// be a part of every latency.
func (o Options) atRate(queries [][]byte, r *Result) error {
	fd, err := o.connect()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	out, in := newMessages(atOnce), newMessages(atOnce)
	interval := time.Second / time.Duration(o.Rate)
	f := newFlight(schedule{interval: interval, queries: int(o.Last / interval)})
	end := f.due(f.queries) + patience
	began := time.Now()
	for now := time.Duration(0); !f.done() && now < end; now = time.Since(began) {
		n := min(f.dueBy(now)-f.sent, atOnce)
		for i := range n {
			out.set(i, queries[(f.sent+i)%len(queries)], uint16(f.sent+i))
		}
		if n, err = out.send(fd, 0, n); err != nil {
			return err
		}
		f.sent += n
		if n, err = in.receive(fd, atOnce); err != nil {
			return err
		}
		if n > 0 {
			now = time.Since(began)
		}
		for i := range n {
			o.land(f, in.received(i), now, queries, r)
		}
	}
	r.Sent, r.Took = f.sent, time.Since(began)
	f.lose(r.Took)
	r.sum(f.latencies)
	return nil
}

// land counts a response.
func (o Options) land(f *flight, response []byte, now time.Duration, queries [][]byte, r *Result) {
	if len(response) < headerSize {
		r.Wrong++
		return
	}
	if !f.answered(id(response), now) {
		return
	}
	if !o.right(queries[f.number(id(response))%len(queries)], response) {
		r.Wrong++
		return
	}
	r.Answered++
}
