package ledger

import (
	"math"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// The sample is fair only if the hash spreads ports and addresses that follow each other.
// Each group of bits that the table uses is tested alone.
func TestHashSpreadsNeighbours(t *testing.T) {
	groups := []struct {
		name  string
		n     int
		group func(h uint64) int
	}{
		{"shard", shards, func(h uint64) int { return int(shardOf(h)) }},
		{"sample, 1 in 2", 2, func(h uint64) int { return int(sampleBits(h) & mask(1)) }},
		{"sample, 1 in 256", 256, func(h uint64) int { return int(sampleBits(h) & mask(8)) }},
		{"place", 256, func(h uint64) int { return int(placeBits(h) >> 24) }},
		{"shard and sample", shards * 4, func(h uint64) int { return int(shardOf(h)<<2 | uint64(sampleBits(h)&mask(2))) }},
	}
	for _, tt := range []struct {
		name string
		flow func(i int) Flow
	}{
		{"ports of one client", func(i int) Flow {
			return Flow{unix.IPPROTO_UDP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 0, 11}), uint16(i)), benchServer}
		}},
		{"addresses of a node's pods, one port", func(i int) Flow {
			return Flow{unix.IPPROTO_UDP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 53), benchServer}
		}},
		{"IPv6 addresses and ports, TCP", func(i int) Flow {
			ip := [16]byte{0: 0xfd, 3: 2, 15: byte(i)}
			return Flow{unix.IPPROTO_TCP, netip.AddrPortFrom(netip.AddrFrom16(ip), uint16(i>>8)), netip.MustParseAddrPort("[fd00:10:96::a]:53")}
		}},
	} {
		const flows = 1 << 16
		for _, g := range groups {
			t.Run(tt.name+"/"+g.name, func(t *testing.T) {
				keys := testKeys
				counts := make([]float64, g.n)
				for i := range flows {
					f := tt.flow(i)
					h, _, ok := keys.identify(&f)
					if !ok {
						t.Fatalf("%+v is no flow", f)
					}
					counts[g.group(h)]++
				}
				expected := flows / float64(g.n)
				var chi2 float64
				for _, c := range counts {
					chi2 += (c - expected) * (c - expected) / expected
				}
				// Normal approximation of the chi-squared distribution.
				df := float64(g.n - 1)
				if z := (chi2 - df) / math.Sqrt(2*df); z > 5 {
					t.Errorf("chi-squared %.0f with %.0f degrees of freedom", chi2, df)
				}
			})
		}
	}
}
