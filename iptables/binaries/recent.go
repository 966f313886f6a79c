package binaries

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A list of xt_recent is a file. A read shows the addresses, and when a rule last saw
// them, in ticks. A write of "+ADDRESS", "-ADDRESS" or "/" adds, deletes or empties
// (net/netfilter/xt_recent.c). The file exists as long as a rule names the list. Neither
// needs the xtables lock.
const recentDirectory = "/proc/thread-self/net/xt_recent/"

// recentClock is an address that no packet has. Adding it shows the present time in
// ticks.
var recentClock = map[bool]netip.Addr{false: netip.IPv4Unspecified(), true: netip.IPv6Unspecified()}

func writeRecent(list, command string) error {
	err := os.WriteFile(recentDirectory+list, []byte(command), 0)
	if errors.Is(err, os.ErrNotExist) && command == "/" {
		return nil // there is no list to empty
	}
	if err != nil {
		return fmt.Errorf("write %q to the list of xt_recent: %w", command, err)
	}
	return nil
}

// recentEntry is an address of a list.
type recentEntry struct {
	addr  netip.Addr
	last  uint64 // ticks
	index uint64 // of the next time stamp: it grows with every packet
}

// readRecent reads a list. A list that does not exist has no entries.
func readRecent(list string) ([]recentEntry, error) {
	text, err := os.ReadFile(recentDirectory + list)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of xt_recent: %w", err)
	}
	var out []recentEntry
	for line := range strings.Lines(string(text)) {
		// src=10.96.0.10 ttl: 64 last_seen: 4295116217 oldest_pkt: 3 4295116100, ...
		words := strings.Fields(line)
		if len(words) < 7 {
			continue
		}
		var e recentEntry
		addr, addrErr := netip.ParseAddr(strings.TrimPrefix(words[0], "src="))
		last, lastErr := strconv.ParseUint(words[4], 10, 64)
		index, indexErr := strconv.ParseUint(words[6], 10, 64)
		if err := errors.Join(addrErr, lastErr, indexErr); err != nil {
			return nil, fmt.Errorf("read the list of xt_recent: %q: %w", line, err)
		}
		e.addr, e.last, e.index = addr, last, index
		out = append(out, e)
	}
	return out, nil
}

// liveInRecent returns the addresses of a list that were seen within the lease.
func liveInRecent(list string, ipv6 bool, lease time.Duration) ([]netip.Addr, error) {
	clock := recentClock[ipv6]
	if err := writeRecent(list, "+"+clock.String()); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	entries, err := readRecent(list)
	if err != nil {
		return nil, err
	}
	tick, err := tickLength()
	if err != nil {
		return nil, err
	}
	var now uint64
	for _, e := range entries {
		if e.addr == clock {
			now = e.last
		}
	}
	var out []netip.Addr
	for _, e := range entries {
		if e.addr != clock && time.Duration(now-e.last)*tick <= lease {
			out = append(out, e.addr)
		}
	}
	return out, nil
}

// tickLength is 1/HZ: the resolution of the coarse clocks (clock_getres(2)).
func tickLength() (time.Duration, error) {
	var res unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &res); err != nil {
		return 0, fmt.Errorf("read the resolution of the kernel's clock: %w", err)
	}
	return time.Duration(res.Nano()), nil
}
