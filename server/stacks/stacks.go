// Package stacks lets goroutines start with a stack on which a query has room.
//
// The DNS server starts a goroutine for every packet that it reads over UDP. With the
// least stack, 2 KiB, it would have to grow it three times on its way through the
// plugins. Each time the runtime copies the stack, which takes a fifth of the CPU time
// of a cached answer.
//
// The Go runtime starts goroutines with the average of what its last garbage collection
// found in use of all stacks (gcComputeStartingStackSize in runtime/stack.go, since Go
// 1.19). Nearly all goroutines of a server wait in shallow functions, or have hardly
// begun. So this package has some wait in a deep one. Where a runtime has no such
// average they are of no use, and do no harm.
package stacks

import (
	"runtime"
	"runtime/metrics"
)

const (
	// room is the stack with which goroutines should start, in bytes: what a cached
	// answer needs.
	room = 16 << 10

	// depth is how much of its stack, of 64 KiB, a goroutine of ours uses. Memory is
	// taken only by the pages at both ends.
	depth = 60 << 10

	// most is the largest number of goroutines of ours.
	most = 128
)

// Keep has goroutines start with room for a query. It gets there within some garbage
// collections, and follows what the process does for as long as it runs.
func Keep() { new(holders).follow() }

// holders are the goroutines of ours.
type holders struct{ release []chan struct{} }

// follow adjusts now and after each garbage collection.
func (h *holders) follow() {
	h.adjust(startingSize())
	// The next collection finds that nothing refers to it.
	runtime.AddCleanup(&struct{ self *holders }{h}, (*holders).follow, h)
}

// adjust fits the number of our goroutines to the size of the stack with which
// goroutines start. A size is twice the next smaller one.
func (h *holders) adjust(size uint64) {
	have := len(h.release)
	step := 1 + have/8
	switch {
	case size < room:
		h.hold(min(have+step*int(room/size/2), most))
	case size > room:
		h.hold(max(have-step*int(size/room/2), 0))
	}
}

func (h *holders) hold(n int) {
	for len(h.release) < n {
		release := make(chan struct{})
		go wait(release, false)
		h.release = append(h.release, release)
	}
	for len(h.release) > n {
		last := len(h.release) - 1
		close(h.release[last])
		h.release = h.release[:last]
	}
}

// wait waits with a deep stack. The array belongs to its frame whether it is used or
// not. One that is used would be filled with zeros, and take memory.
//
//go:noinline
func wait(release <-chan struct{}, use bool) {
	if use {
		var a [depth]byte
		touch(&a)
	}
	<-release
}

//go:noinline
func touch(a *[depth]byte) { a[0]++ }

// startingSize is the size of the stack with which goroutines start.
func startingSize() uint64 {
	sample := []metrics.Sample{{Name: "/gc/stack/starting-size:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return room // this runtime does not say
	}
	return max(sample[0].Value.Uint64(), 1)
}
