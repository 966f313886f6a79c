//go:build race

package store

// reserve returns n octets on the Go heap, since the race detector watches
// nothing else.
func reserve(n int) ([]byte, error) { return make([]byte, n), nil }

func discard([]byte) {}

func release([]byte) {}
