package kernel

import (
	"testing"

	"github.com/cilium/ebpf"
)

// The tables of the default size fit into 6 MB, also where each of many CPUs has counters.
func TestMemory(t *testing.T) {
	const most = 6_000_000
	for _, cpus := range []int{1, 8, 80, 128, 256} {
		spec, err := loadAnswer()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := resize(spec, DefaultSize, cpus); err != nil {
			t.Fatal(err)
		}
		total := 0
		for _, m := range spec.Maps {
			const node = 64 // of an entry of a hash, besides key and value
			switch entries, value := int(m.MaxEntries), int(m.ValueSize); {
			case m.Type == ebpf.RingBuf:
				total += entries
			case m.Type == ebpf.PerCPUArray:
				total += entries * (8 + value*cpus)
			case m.Type == ebpf.Array:
				total += entries * value
			case m.Flags == 0: // made at once
				total += entries * (node + int(m.KeySize) + value)
			}
		}
		if total > most {
			t.Errorf("%d CPUs: %d bytes, want at most %d", cpus, total, most)
		}
	}
}
