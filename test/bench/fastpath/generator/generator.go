// Package generator asks a DNS server over UDP from one thread, with as few system
// calls as possible, so that a benchmark measures the server.
//
// Bursts saturate the server: each socket sends its next burst when the last one is
// answered. At a rate the schedule alone says when a query is due, whatever became of
// those before it, and its latency counts from then. So a server or a generator that
// stalls does not hide what the stall cost (coordinated omission).
package generator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/lab"
)

// patience is how long a query waits for its answer.
const patience = 200 * time.Millisecond

// Options are a load. Either Burst or Rate is set.
type Options struct {
	Server netip.AddrPort

	// Names says how many host names of the lab are asked in turn, beginning with
	// the one with the number First.
	First, Names int

	// Last is for how long queries are sent.
	Last time.Duration

	// Burst is how many queries each socket sends at once, at most 64. Sockets must
	// be even.
	Burst, Sockets int

	// Rate is the number of queries a second. They come from one socket.
	Rate int

	// Any accepts every response to the query, such as an echo or a failure. All
	// others must have an answer.
	Any bool
}

// A Result is what became of a load.
type Result struct {
	Sent, Answered int

	// Wrong are responses that answer no query, or without an answer.
	Wrong int

	// Took is from the first query to the last answer, and CPU the processor time of
	// this process meanwhile. Process is all of its processor time, since it began.
	Took, CPU, Process time.Duration

	// P50 and P99 are latencies at a rate. A lost query counts as one that took as
	// long as it was waited for, which is until the patience after the last one.
	P50, P99 time.Duration
}

// Run plays the load from the network namespace of the calling thread. The caller must
// be locked to it, and nothing else may run in this process meanwhile.
func Run(o Options) (*Result, error) {
	if o.Names < 1 || o.Last <= 0 || (o.Burst > 0) == (o.Rate > 0) || o.Burst > 64 || o.Burst > 0 && (o.Sockets < 2 || o.Sockets%2 != 0) {
		return nil, fmt.Errorf("a load of these options is impossible: %+v", o)
	}
	queries, err := o.queries()
	if err != nil {
		return nil, err
	}
	play := o.bursts
	if o.Rate > 0 {
		play = o.atRate
	}
	before, err := processorTime()
	if err != nil {
		return nil, err
	}
	r := &Result{}
	if err := play(queries, r); err != nil {
		return nil, fmt.Errorf("ask %s: %w", o.Server, err)
	}
	r.Process, err = processorTime()
	r.CPU = r.Process - before
	return r, err
}

// queries are the messages of the load, with the id 0.
func (o Options) queries() ([][]byte, error) {
	queries := make([][]byte, o.Names)
	for i := range queries {
		m := new(dns.Msg).SetQuestion(lab.HostName(o.First+i).Text, dns.TypeA)
		m.Id = 0
		wire, err := m.Pack()
		if err != nil {
			return nil, err
		}
		queries[i] = wire
	}
	return queries, nil
}

// connect opens a socket to the server.
func (o Options) connect() (int, error) {
	fd, err := lab.OpenSocket(lab.UDP, o.Server.Addr().Is6())
	if err != nil {
		return -1, err
	}
	const buffer = 4 << 20 // bytes; a stall of the generator must lose nothing
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		return -1, errors.Join(fmt.Errorf("give the socket a larger buffer: %w", err), unix.Close(fd))
	}
	if err := unix.Connect(fd, lab.Sockaddr(o.Server)); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

const headerSize = 12 // RFC 1035 section 4.1.1

func id(message []byte) uint16 { return binary.BigEndian.Uint16(message) }

// right reports whether the response is one to the query, apart from the id.
func (o Options) right(query, response []byte) bool {
	const (
		flags   = 2
		answers = 6
	)
	if len(response) < len(query) || !bytes.Equal(response[headerSize:len(query)], query[headerSize:]) {
		return false
	}
	if response[flags]&0x80 == 0 { // QR
		return false
	}
	return o.Any || response[flags+1]&0x0f == dns.RcodeSuccess && binary.BigEndian.Uint16(response[answers:]) > 0
}

// Percentile is the smallest of the sorted values that at least the share p of them do
// not exceed; NaN of none.
func Percentile[V ~int64 | ~float64](sorted []V, p float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	rank := int(math.Ceil(p * float64(len(sorted))))
	return float64(sorted[min(max(rank, 1), len(sorted))-1])
}

// sum notes the percentiles of the latencies.
func (r *Result) sum(latencies []time.Duration) {
	slices.Sort(latencies)
	if len(latencies) > 0 {
		r.P50 = time.Duration(Percentile(latencies, 0.50))
		r.P99 = time.Duration(Percentile(latencies, 0.99))
	}
}

func processorTime() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &now); err != nil {
		return 0, fmt.Errorf("read the processor clock of this process: %w", err)
	}
	return time.Duration(now.Nano()), nil
}
