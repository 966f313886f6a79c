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

// reserve returns n bytes of zeroed memory outside of the Go heap. They take address
// space at once, and memory when they are first written.
func reserve(n int) ([]byte, error) {
	mem, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("cache: reserve %d bytes of memory: %w (lower size, or raise the memory limit)", n, err)
	}
	// With huge pages, the first record of each shard would take 2 MiB. The error is
	// ignored: a kernel without huge pages returns one.
	_ = syscall.Madvise(mem, madvNoHugePage)
	return mem, nil
}

// discard returns the memory to the kernel. Afterwards it reads as zeros.
func discard(mem []byte) { _ = syscall.Madvise(mem, madvDontNeed) }

func release(mem []byte) { _ = syscall.Munmap(mem) }
