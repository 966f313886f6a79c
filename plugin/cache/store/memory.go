//go:build !race

package store

import (
	"fmt"
	"syscall"
)

// From include/uapi/asm-generic/mman-common.h.
const (
	madvDontNeed   = 4
	madvNoHugePage = 15
)

// reserve returns n octets of zeroed memory outside of the Go heap. They take
// address space at once and memory when they are first written.
func reserve(n int) ([]byte, error) {
	mem, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("cache: reserve %d octets of memory: %w (lower size, or raise the memory limit)", n, err)
	}
	// With huge pages the first record of each shard would cost 2 MiB. A
	// kernel without them has nothing to switch off.
	_ = syscall.Madvise(mem, madvNoHugePage)
	return mem, nil
}

// discard lets the kernel take the memory back; it reads as zeros afterwards.
func discard(mem []byte) { _ = syscall.Madvise(mem, madvDontNeed) }

func release(mem []byte) { _ = syscall.Munmap(mem) }
