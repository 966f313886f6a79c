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

// flight are the queries on their way, by the lower bits of their number, which are
// their ids.
type flight struct {
	schedule
	waiting   [1 << 16]bool
	sent      int
	done      int
	latencies []time.Duration
}

func newFlight(s schedule) *flight {
	return &flight{schedule: s, latencies: make([]time.Duration, 0, s.queries)}
}

// number is the number of the query that has the id.
func (f *flight) number(id uint16) int {
	last := f.sent - 1
	return last - int(uint16(last)-id)
}

// answered notes the answer to a query, and reports whether it was waited for.
func (f *flight) answered(id uint16, now time.Duration) bool {
	if !f.waiting[id] {
		return false
	}
	f.waiting[id] = false
	f.done++
	f.latencies = append(f.latencies, now-f.due(f.number(id)))
	return true
}

// lose counts all queries without an answer as lost, also those that could not be sent.
func (f *flight) lose() {
	for range f.queries - f.done {
		f.latencies = append(f.latencies, patience)
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
	for now := time.Duration(0); f.done < f.queries && now < end; now = time.Since(began) {
		n := min(f.dueBy(now)-f.sent, atOnce)
		for i := range n {
			out.set(i, queries[(f.sent+i)%len(queries)], uint16(f.sent+i))
		}
		if n, err = out.send(fd, 0, n); err != nil {
			return err
		}
		for range n {
			f.waiting[uint16(f.sent)] = true
			f.sent++
		}
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
	f.lose()
	r.Sent, r.Took = f.sent, time.Since(began)
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
