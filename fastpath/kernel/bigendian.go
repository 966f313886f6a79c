//go:build !(386 || amd64 || arm || arm64 || loong64 || mips64le || mipsle || ppc64le || riscv64 || wasm) || !linux

package kernel

import (
	"errors"

	"github.com/cilium/ebpf"
)

// loadAnswer stands in for the program on machines that have the most significant byte
// first: records hold their numbers the other way round.
func loadAnswer() (*ebpf.CollectionSpec, error) {
	return nil, errors.New("the kernel program is for little-endian machines only; set kernel off")
}
