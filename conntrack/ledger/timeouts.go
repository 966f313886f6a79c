package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Timeouts are the lifetimes of entries after their last packet. A zero field means the
// kernel's default.
type Timeouts struct {
	UDP         time.Duration // nf_conntrack_udp_timeout, 30 s: one packet, or both directions within the first 2 s
	UDPStream   time.Duration // nf_conntrack_udp_timeout_stream, 120 s: both directions, active after 2 s
	TCPTimeWait time.Duration // nf_conntrack_tcp_timeout_time_wait, 120 s: closed in both directions
	TCPClose    time.Duration // nf_conntrack_tcp_timeout_close, 10 s: reset
}

// DefaultTimeouts are the kernel's defaults: udp_timeouts and tcp_timeouts in
// nf_conntrack_proto_udp.c and _tcp.c.
var DefaultTimeouts = Timeouts{
	UDP:         30 * time.Second,
	UDPStream:   120 * time.Second,
	TCPTimeWait: 120 * time.Second,
	TCPClose:    10 * time.Second,
}

// ReadTimeouts returns the timeouts in the network namespace of the calling thread. It reads
// them from sys/net/netfilter below procRoot (usually "/proc"). If a file does not exist,
// for example because conntrack is not loaded, its timeout is the kernel's default. If a
// file cannot be read or parsed, its timeout is the default too, and the error names it;
// the returned timeouts are complete. A sysctl of 0 means that an entry expires at once. It
// is returned as one nanosecond.
func ReadTimeouts(procRoot string) (Timeouts, error) {
	t := DefaultTimeouts
	var errs []error
	for _, sysctl := range []struct {
		name  string
		value *time.Duration
	}{
		{"nf_conntrack_udp_timeout", &t.UDP},
		{"nf_conntrack_udp_timeout_stream", &t.UDPStream},
		{"nf_conntrack_tcp_timeout_time_wait", &t.TCPTimeWait},
		{"nf_conntrack_tcp_timeout_close", &t.TCPClose},
	} {
		path := filepath.Join(procRoot, "sys/net/netfilter", sysctl.name)
		switch d, err := readSeconds(path); {
		case err == nil:
			*sysctl.value = max(d, time.Nanosecond)
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("conntrack timeout: %w; the kernel's default of %v is assumed", err, *sysctl.value))
		}
	}
	return t, errors.Join(errs...)
}

func readSeconds(path string) (time.Duration, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	seconds, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s is not a number of seconds: %w", path, err)
	}
	return time.Duration(seconds) * time.Second, nil
}

// timeouts are Timeouts in the unit of slots, milliseconds.
type timeouts struct {
	udp, udpStream       uint32
	tcpTimeWait, tcpIdle uint32
	tcpClose             uint32
	tcpEndsReported      bool

	// longest is the longest timeout since the ledger was made: flows keep the timeout
	// under which they were noted.
	longest uint32
}

// maxTimeout keeps an expiry well within half the range of the 32-bit clock of a slot (24
// days). There is room for the two terms of a TCP expiry.
const maxTimeout = 10 * 24 * time.Hour

// tcpEnds is how a ledger knows when TCP connections end.
type tcpEnds struct {
	idle     time.Duration // see Config.TCPIdle
	reported bool          // FollowTCP reports them
}

func (t Timeouts) inMilliseconds(tcp tcpEnds) *timeouts {
	ms := func(d, byDefault time.Duration) uint32 {
		if d == 0 {
			d = byDefault
		}
		return uint32(min(max(d, 0), maxTimeout).Milliseconds())
	}
	r := &timeouts{
		udp:         ms(t.UDP, DefaultTimeouts.UDP),
		udpStream:   ms(t.UDPStream, DefaultTimeouts.UDPStream),
		tcpTimeWait: ms(t.TCPTimeWait, DefaultTimeouts.TCPTimeWait),
		tcpIdle:     ms(tcp.idle, DefaultTCPIdle),
		tcpClose:    ms(t.TCPClose, DefaultTimeouts.TCPClose),

		tcpEndsReported: tcp.reported,
	}
	r.longest = max(r.udp, r.udpStream, r.tcpTimeWait+r.tcpIdle, r.tcpClose)
	return r
}
