// Package sockets tells who listens on a node, from the files below proc/net of a
// process or thread.
package sockets

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/prometheus/procfs"
)

const dnsPort = 53

// Listeners returns the addresses on which DNS servers listen with UDP sockets,
// from proc/net of the process or thread directory proc ("/proc/thread-self").
// Sockets on loopback addresses are left out: they are resolvers of the node, not a
// cache for its pods. A socket on the wildcard address is one at each of the
// addresses held, which this node has for a cache, and at no other.
func Listeners(proc string, held ...netip.Addr) ([]netip.Addr, error) {
	return listeners(proc, func(uint64) bool { return true }, held)
}

// OtherListeners returns those of other processes, without sockets on the wildcard
// address.
func OtherListeners(proc string) ([]netip.Addr, error) {
	own := map[string]bool{}
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return nil, fmt.Errorf("listening sockets: %w", err)
	}
	for _, name := range names {
		// A file that was closed meanwhile is none of them.
		if what, err := os.Readlink(name); err == nil {
			own[what] = true
		}
	}
	return listeners(proc, func(inode uint64) bool { return !own[fmt.Sprintf("socket:[%d]", inode)] }, nil)
}

// listeners takes the sockets into account whose inode counts.
func listeners(proc string, counts func(inode uint64) bool, held []netip.Addr) ([]netip.Addr, error) {
	fs, err := procfs.NewFS(proc)
	if err != nil {
		return nil, fmt.Errorf("listening sockets: %w", err)
	}
	v4, err := fs.NetUDP()
	if err != nil {
		return nil, fmt.Errorf("listening sockets: %w", err)
	}
	v6, err := fs.NetUDP6() // absent without IPv6
	if err != nil {
		v6 = nil
	}
	var list []netip.Addr
	for _, line := range slices.Concat(v4, v6) {
		addr, ok := netip.AddrFromSlice(line.LocalAddr)
		if !ok || line.LocalPort != dnsPort || addr.IsLoopback() || !counts(line.Inode) {
			continue
		}
		at := []netip.Addr{addr.Unmap()}
		if addr.IsUnspecified() {
			// That of IPv6 takes IPv4 too, unless the program said otherwise,
			// which cannot be seen from outside.
			at = slices.DeleteFunc(slices.Clone(held), func(h netip.Addr) bool { return addr.Is4() && h.Is6() })
		}
		list = append(list, at...)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list), nil
}

// HasListener reports whether a UDP socket is bound to exactly this address and
// port: false if that cannot be read.
func HasListener(proc string, at netip.AddrPort) bool {
	fs, err := procfs.NewFS(proc)
	if err != nil {
		return false
	}
	read := fs.NetUDP
	if at.Addr().Is6() {
		read = fs.NetUDP6
	}
	sockets, err := read()
	if err != nil {
		return false
	}
	for _, line := range sockets {
		addr, ok := netip.AddrFromSlice(line.LocalAddr)
		if ok && addr.Unmap() == at.Addr() && line.LocalPort == uint64(at.Port()) {
			return true
		}
	}
	return false
}
