package sockets

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bound returns the inodes of the sockets that are bound to the addresses, from proc/net of
// the process or thread directory proc: those that listen over TCP, or all over UDP.
func Bound(proc string, tcp bool, at []netip.AddrPort) (map[netip.AddrPort][]uint64, error) {
	before, err := boundOnce(proc, tcp, at)
	for range mostReads {
		if err != nil {
			return nil, err
		}
		var again map[netip.AddrPort][]uint64
		if again, err = boundOnce(proc, tcp, at); err == nil && maps.EqualFunc(before, again, slices.Equal) {
			return again, nil
		}
		before = again
	}
	return nil, errors.Join(err, errRestless)
}

// The kernel goes on with such a file by the number of a line. So it leaves out lines, or
// repeats some, while other sockets come and go. What is read twice alike is right.
const mostReads = 10

var errRestless = errors.New("sockets: so many come and go that they cannot be listed")

func boundOnce(proc string, tcp bool, at []netip.AddrPort) (map[netip.AddrPort][]uint64, error) {
	out := map[netip.AddrPort][]uint64{}
	name := "udp"
	if tcp {
		name = "tcp"
	}
	for _, file := range []string{name, name + "6"} {
		err := bound(filepath.Join(proc, "net", file), tcp, out)
		if errors.Is(err, os.ErrNotExist) && file != name {
			continue // without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("sockets over %s: %w", name, err)
		}
	}
	maps.DeleteFunc(out, func(a netip.AddrPort, _ []uint64) bool { return !slices.Contains(at, a) })
	for _, inodes := range out {
		slices.Sort(inodes)
	}
	return out, nil
}

// listens is the state of a socket that listens (TCP_LISTEN, include/net/tcp_states.h).
const listens = "0A"

// bound reads one file (proc_net(5)). Of TCP it reads the beginning: listeners come first, and
// there may be very many connections.
func bound(file string, tcp bool, out map[netip.AddrPort][]uint64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	lines.Scan() // the heading
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			return fmt.Errorf("%s: a line has %d fields", file, len(fields))
		}
		if tcp && fields[3] != listens {
			break
		}
		at, err := parseAddress(fields[1])
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		inode, err := strconv.ParseUint(fields[9], 10, 64)
		if err != nil {
			return fmt.Errorf("%s: inode: %w", file, err)
		}
		out[at] = append(out[at], inode)
	}
	return lines.Err()
}

// parseAddress reads a transport address: words of an IP address in the order of the host,
// then the port.
func parseAddress(text string) (netip.AddrPort, error) {
	words, port, _ := strings.Cut(text, ":")
	address, err := hex.DecodeString(words)
	if err == nil && len(address)%4 != 0 {
		err = hex.ErrLength
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %s: %w", text, err)
	}
	for word := range slices.Chunk(address, 4) {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	a, _ := netip.AddrFromSlice(address)
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port of %s: %w", text, err)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}

// Shared reports whether another process has a socket at the address and port, or at the
// wildcard address. What cannot be read is taken for one.
func Shared(at netip.AddrPort, tcp bool) bool {
	var places []netip.AddrPort
	for _, a := range []netip.Addr{at.Addr(), netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		places = append(places, netip.AddrPortFrom(a, at.Port()))
	}
	all, err := Bound("/proc/thread-self", tcp, places)
	if err != nil {
		return true
	}
	others := map[uint64]bool{}
	for _, inodes := range all {
		for _, inode := range inodes {
			others[inode] = true
		}
	}
	for _, fd := range Descriptors() {
		var stat unix.Stat_t
		if unix.Fstat(fd, &stat) == nil && stat.Mode&unix.S_IFMT == unix.S_IFSOCK {
			delete(others, stat.Ino)
		}
	}
	return len(others) > 0
}
