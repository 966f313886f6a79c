package binaries

import (
	"context"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/iptables"
)

// watchInterval is the time between two looks at legacy tables. The kernel does
// not announce their changes, but says how large they are at the price of a
// system call. What keeps the size is found at the next sync.
const watchInterval = 500 * time.Millisecond

// tableInfo is struct ipt_getinfo (linux/netfilter_ipv4/ip_tables.h); that of
// ip6_tables.h is the same.
type tableInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	entries    uint32
	size       uint32
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const getInfo = 64

// readInfo asks for the raw table of a family, which has to be there.
func readInfo(f iptables.Family) (info tableInfo, err error) {
	domain, level := unix.AF_INET, unix.IPPROTO_IP
	if f == iptables.IPv6 {
		domain, level = unix.AF_INET6, unix.IPPROTO_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return info, err
	}
	defer unix.Close(fd)
	copy(info.name[:], "raw")
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return info, errno
	}
	return info, nil
}

// watch calls changed when others have changed the legacy raw tables that hold
// our rules, until the context ends. Changes of iptables-nft are announced by
// the kernel, see package nftables.
func (b *Backend) watch(ctx context.Context, changed func()) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	known := map[iptables.Family]tableInfo{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, f := range b.watched() {
			info, err := readInfo(f)
			if err != nil {
				continue // the next sync says what is wrong
			}
			if last, ok := known[f]; ok && last != info {
				changed()
			}
			known[f] = info
		}
	}
}

// watched are the families whose legacy tables have rules of ours. It does not
// wait for a change under way.
func (b *Backend) watched() []iptables.Family {
	if !b.mu.TryLock() {
		return nil
	}
	defer b.mu.Unlock()
	// To ask for a table that is not there would make it.
	return slices.DeleteFunc(slices.Clone(b.families), func(f iptables.Family) bool { return b.programs[f].variant != Legacy })
}
