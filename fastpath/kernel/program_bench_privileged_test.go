//go:build privileged

package kernel

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// What a packet costs in the program, by the kernel's statistics: queries for any of 10,000
// names, names that have no record, and datagrams to others. The time of a system call
// between two packets is not in it, what that does to the processor's caches is.
func BenchmarkProgram(b *testing.B) {
	p := loadSize(b, DefaultSize)
	if err := p.Listen(netip.AddrPortFrom(node4, 53), 0, 1<<16-1); err != nil {
		b.Fatal(err)
	}
	p.Open(0, time.Now().Add(time.Hour))
	const names = 10_000
	name := func(i int) string { return fmt.Sprintf("service-%d.namespace.svc.cluster.local.", i) }
	for i := range names {
		key, a := message(b, name(i), dns.TypeA, 0, 0, []string{name(i) + " 30 IN A 192.0.2.1"}, nil)
		r := fastpath.Record{Key: key, Answer: a, TTL: 3600, Serve: 3600, Stored: time.Now()}
		if err := publishTo(p.Table, &r); err != nil {
			b.Fatal(err)
		}
	}
	query := func(i int) []byte {
		q := make([]byte, 12, 64)
		binary.BigEndian.PutUint16(q, uint16(i))
		q[2], q[5] = 1, 1
		key, err := wire.AppendKey(nil, name(i), dns.TypeA, dns.ClassINET, 0)
		if err != nil {
			b.Fatal(err)
		}
		return append(append(q, key.Name()...), 0, 1, 0, 1)
	}
	random := rand.New(rand.NewPCG(7, 8))
	for _, row := range []struct {
		name   string
		packet func() []byte
		want   uint32
	}{
		{"hit", func() []byte {
			return packet(netip.AddrPortFrom(pod4, 40000), netip.AddrPortFrom(node4, 53), query(random.IntN(names)))
		}, redirect},
		{"miss", func() []byte {
			return packet(netip.AddrPortFrom(pod4, 40000), netip.AddrPortFrom(node4, 53), query(names+random.IntN(names)))
		}, passOn},
		{"other", func() []byte {
			return packet(netip.AddrPortFrom(pod4, 40000), netip.AddrPortFrom(netip.MustParseAddr("10.244.0.1"), 4000), query(random.IntN(names)))
		}, passOn},
	} {
		b.Run(row.name, func(b *testing.B) {
			packets := make([][]byte, 4096)
			for i := range packets {
				packets[i] = row.packet()
			}
			counting, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = counting.Close() }()
			before, err := p.BPF().Stats()
			if err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				if verdict, _, err := p.run(packets[i%len(packets)]); err != nil || verdict != row.want {
					b.Fatalf("verdict %#x: %v", verdict, err)
				}
			}
			after, err := p.BPF().Stats()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount), "ns-in-program/op")
		})
	}
}
