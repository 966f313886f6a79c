package ledger

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

var benchServer = netip.MustParseAddrPort("10.96.0.10:53")

// benchFlow returns the i-th of 2^32 UDP flows from as many clients as needed.
func benchFlow(i uint32) Flow {
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], 10<<24|244<<16|i>>15&0xffff)
	return Flow{
		Proto:  unix.IPPROTO_UDP,
		Client: netip.AddrPortFrom(netip.AddrFrom4(ip), uint16(32768+i&0x7fff)),
		Server: benchServer,
	}
}

func BenchmarkQueryAndResponse(b *testing.B) {
	for _, bb := range []struct {
		name  string
		flows uint32
	}{
		{"1k flows", 1 << 10},
		{"128k flows", 1 << 17},
		{"1M flows, sampled", 1 << 20},
	} {
		flows := make([]Flow, bb.flows)
		for i := range flows {
			flows[i] = benchFlow(uint32(i))
		}
		b.Run(bb.name+"/serial", func(b *testing.B) {
			l := New(Config{})
			l.Answered(flows...)
			b.ReportAllocs()
			var i uint32
			for b.Loop() {
				l.Query(flows[i%bb.flows])
				l.Response(flows[i%bb.flows])
				i++
			}
		})
		b.Run(bb.name+"/serial, answered", func(b *testing.B) {
			l := New(Config{})
			l.Answered(flows...)
			b.ReportAllocs()
			var i uint32
			for b.Loop() {
				l.Answered(flows[i%bb.flows])
				i++
			}
		})
		b.Run(bb.name+"/serial, answered by 32", func(b *testing.B) {
			l := New(Config{})
			l.Answered(flows...)
			b.ReportAllocs()
			var i uint32
			for b.Loop() {
				if i%32 == 0 {
					at := i % bb.flows
					l.Answered(flows[at : at+32]...)
				}
				i++
			}
		})
		b.Run(bb.name+"/parallel", func(b *testing.B) {
			l := New(Config{})
			l.Answered(flows...)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				var i uint32
				for pb.Next() {
					l.Query(flows[i%bb.flows])
					l.Response(flows[i%bb.flows])
					i += 7
				}
			})
		})
	}
}

// BenchmarkFreshPorts never repeats a flow: each query makes an entry.
func BenchmarkFreshPorts(b *testing.B) {
	l := New(Config{})
	b.ReportAllocs()
	var i uint32
	for b.Loop() {
		f := benchFlow(i)
		l.Query(f)
		l.Response(f)
		i++
	}
}

func BenchmarkEntries(b *testing.B) {
	l := New(Config{})
	for i := range uint32(120_000) {
		l.Answered(benchFlow(i))
	}
	b.ReportAllocs()
	for b.Loop() {
		l.Entries()
	}
}

func BenchmarkFlows(b *testing.B) {
	l := New(Config{})
	b.ReportAllocs()
	for b.Loop() {
		l.Flows()
	}
}
