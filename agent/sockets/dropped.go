package sockets

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Dropped counts the UDP packets that found no room in the buffer of a socket of this
// network namespace. It is read at most once in droppedInterval, however many ask. It
// is safe for concurrent use.
type Dropped struct {
	Proc string // where proc is

	mu   sync.Mutex
	at   time.Time
	last uint64
}

const droppedInterval = 10 * time.Millisecond

// Count is how many there were so far (RcvbufErrors of proc/net/snmp and
// Udp6RcvbufErrors of proc/net/snmp6), 0 where the kernel does not say.
func (d *Dropped) Count() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); now.Sub(d.at) >= droppedInterval {
		d.last, d.at = d.read(), now
	}
	return d.last
}

func (d *Dropped) read() (sum uint64) {
	// The lines of snmp come in pairs, names and values.
	var names [][]byte
	for line := range d.lines("net/snmp") {
		words := bytes.Fields(line)
		if len(words) == 0 || string(words[0]) != "Udp:" {
			continue
		}
		if names == nil {
			names = words
			continue
		}
		for i, name := range names[:min(len(names), len(words))] {
			if string(name) == "RcvbufErrors" {
				sum += decimal(words[i])
			}
		}
	}
	for line := range d.lines("net/snmp6") {
		if words := bytes.Fields(line); len(words) == 2 && string(words[0]) == "Udp6RcvbufErrors" {
			sum += decimal(words[1])
		}
	}
	return sum
}

func (d *Dropped) lines(file string) func(func([]byte) bool) {
	text, err := os.ReadFile(filepath.Join(d.Proc, "thread-self", file))
	if err != nil {
		return func(func([]byte) bool) {} // a kernel without IPv6 has no snmp6
	}
	return bytes.Lines(text)
}

// decimal is 0 for what is no number.
func decimal(word []byte) uint64 {
	n, err := strconv.ParseUint(string(word), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
