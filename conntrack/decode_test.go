package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/conntrack/internal/nfnetlink"
	"github.com/trackless-dns/trackless/internal/testgolden"
)

// fullEntry returns the attributes of an entry with everything in it.
func fullEntry(t testing.TB) []byte {
	t.Helper()
	orig := Tuple{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.96.0.10"), SrcPort: 1000, DstPort: 53, Proto: TCP, Zone: 4}
	reply := orig.Mirror()
	u32 := func(typ uint16, v uint32) netfilter.Attribute {
		return netfilter.Attribute{Type: typ, Data: binary.BigEndian.AppendUint32(nil, v)}
	}
	u64 := func(typ uint16, v uint64) netfilter.Attribute {
		return netfilter.Attribute{Type: typ, Data: binary.BigEndian.AppendUint64(nil, v)}
	}
	nest := func(typ uint16, children ...netfilter.Attribute) netfilter.Attribute {
		return netfilter.Attribute{Type: typ, Nested: true, Children: children}
	}
	b, err := netfilter.MarshalAttributes([]netfilter.Attribute{
		tupleAttribute(ctaTupleOrig, &orig), tupleAttribute(ctaTupleReply, &reply), tupleAttribute(ctaTupleMaster, &reply),
		u32(ctaStatus, uint32(StatusSeenReply|StatusAssured)), u32(ctaTimeout, 90), u32(ctaMark, 7), u32(ctaUse, 1), u32(ctaID, 99),
		{Type: ctaZone, Data: []byte{0, 3}},
		tcpAttribute(&TCPInfo{State: TCPLastAck, OriginalFlags: 1, ReplyFlags: 2}),
		nest(ctaCountersOrig, u64(ctaCountersPackets, 1), u64(ctaCountersBytes, 2)),
		nest(ctaCountersReply, u32(ctaCounters32Packets, 3), u32(ctaCounters32Bytes, 4)),
		nest(ctaTimestamp, u64(ctaTimestampStart, 5e9), u64(ctaTimestampStop, 6e9)),
		nest(ctaHelp, netfilter.Attribute{Type: ctaHelpName, Data: []byte("ftp\x00")}),
		nest(ctaSecctx, netfilter.Attribute{Type: ctaSecctxName, Data: []byte("u:r\x00")}),
		{Type: ctaLabels, Data: []byte{1, 2, 3, 4}},
		nest(ctaSeqAdjOrig), nest(ctaSynproxy),
		u32(200, 1), // of a later kernel
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeEverything(t *testing.T) {
	var d decoder
	var e Entry
	if err := d.entry(fullEntry(t), &e); err != nil {
		t.Fatal(err)
	}
	want := Entry{
		Original: Tuple{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.96.0.10"), SrcPort: 1000, DstPort: 53, Proto: TCP, Zone: 4},
		Reply:    Tuple{Src: netip.MustParseAddr("10.96.0.10"), Dst: netip.MustParseAddr("10.0.0.1"), SrcPort: 53, DstPort: 1000, Proto: TCP},
		Status:   StatusSeenReply | StatusAssured, Timeout: 90 * time.Second, Mark: 7, Use: 1, ID: 99, Zone: 3,
		TCP:              TCPInfo{State: TCPLastAck, OriginalFlags: 1, ReplyFlags: 2},
		OriginalCounters: Counters{1, 2}, ReplyCounters: Counters{3, 4},
		Start: time.Unix(5, 0), Stop: time.Unix(6, 0), Helper: "ftp", Secctx: "u:r", Labels: [16]byte{1, 2, 3, 4},
	}
	want.Master = want.Reply
	want.fields = FieldStatus | FieldTimeout | FieldMark | FieldUse | FieldID | FieldZone | FieldOriginalZone | FieldTCP |
		FieldOriginalCount | FieldReplyCount | FieldTimestamp | FieldHelper | FieldLabels | FieldSecctx | FieldMaster | FieldSeqAdj | FieldSynproxy
	if e != want {
		t.Errorf("got  %+v\nwant %+v", e, want)
	}
}

// A message cut short anywhere is an error or a shorter entry, never a panic
// and never what the entry before it held.
func TestDecodeTruncated(t *testing.T) {
	full := fullEntry(t)
	var d decoder
	for n := range full {
		e := Entry{Helper: "left over", Mark: 1 << 31}
		err := d.entry(full[:n], &e)
		if e.Helper == "left over" || e.Mark == 1<<31 {
			t.Fatalf("%d of %d bytes: the entry before shows through", n, len(full))
		}
		if inLast := n > len(full)-8; inLast && err == nil {
			t.Errorf("%d of %d bytes, which end inside the last attribute, decode without an error", n, len(full))
		}
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	full := fullEntry(t)
	var d decoder
	var e Entry
	if n := testing.AllocsPerRun(1000, func() {
		if err := d.entry(full, &e); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per entry, want 0", n)
	}
}

func BenchmarkDecode(b *testing.B) {
	full := fullEntry(b)
	orig := Tuple{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.96.0.10"), SrcPort: 1000, DstPort: 53, Proto: UDP}
	usual, err := netfilter.MarshalAttributes(createAttributes(&Entry{Original: orig, Reply: orig.Mirror(), Timeout: time.Minute}))
	if err != nil {
		b.Fatal(err)
	}
	for name, message := range map[string][]byte{"usual": usual, "everything": full} {
		b.Run(name, func(b *testing.B) {
			var d decoder
			var e Entry
			b.ReportAllocs()
			for b.Loop() {
				if err := d.entry(message, &e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	full := fullEntry(f)
	f.Add(full)
	f.Add(full[:len(full)/2])
	f.Add([]byte{})
	f.Add([]byte{4, 0, 1, 0x80, 3, 0, 2, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		var d decoder
		var e, again Entry
		var x Expectation
		err := d.entry(b, &e)
		if err2 := d.entry(b, &again); again != e || (err == nil) != (err2 == nil) {
			t.Fatalf("decoded twice: %+v %v, then %+v %v", e, err, again, err2)
		}
		_ = d.expectation(b, &x)
		if len(b) >= nfnetlink.GenHeaderLen {
			_, _ = decodeStats(b)
		}
		for rest := b; len(rest) > 0; {
			m, next, err := nfnetlink.NextMessage(rest)
			if err != nil {
				break
			}
			if len(next) >= len(rest) {
				t.Fatal("no progress")
			}
			_ = m.KernelError()
			rest = next
		}
		// Whatever was decoded can be asked about and shown.
		_, _, _, _ = e.State(), e.Status.String(), e.NAT().String(), e.IsDNS()
		filter := Filter{DNS: true, States: []string{"NONE"}}
		_ = filter.Match(&e)
	})
}

// fakeKernel answers each request with datagrams prepared for it.
type fakeKernel struct {
	answers [][]byte
	seq     uint32
	onRead  func()
}

func (k *fakeKernel) Send(m netlink.Message) (netlink.Message, error) {
	k.seq++
	m.Header.Sequence = k.seq
	return m, nil
}

func (k *fakeKernel) Receive(b []byte) (int, error) {
	if k.onRead != nil {
		k.onRead()
	}
	if len(k.answers) == 0 {
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(b, k.answers[0])
	k.answers = k.answers[1:]
	return n, nil
}

func (k *fakeKernel) Close() error { return nil }

// raw builds one netlink message.
func raw(typ, flags uint16, seq uint32, data ...byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(nfnetlink.HeaderLen+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0)
	b = append(b, data...)
	return append(b, make([]byte, nfnetlink.Align4(len(b))-len(b))...)
}

func errno(e unix.Errno) []byte {
	return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e)))
}

func TestDumpAnswers(t *testing.T) {
	const newEntry = uint16(netfilter.NFSubsysCTNetlink)<<8 | msgNew
	entry := append([]byte{unix.AF_INET, 0, 0, 0}, fullEntry(t)...)
	done := raw(unix.NLMSG_DONE, unix.NLM_F_MULTI, 1, 0, 0, 0, 0)
	// An acknowledgement with the kernel's own words: errno, the request's
	// header (capped), then the attribute.
	words := append(errno(unix.EINVAL), make([]byte, nfnetlink.HeaderLen)...)
	words = append(words, 12, 0, nfnetlink.MsgErrText, 0)
	words = append(words, "no way\x00\x00"...)

	golden := testgolden.NewRows(t, "dump-errors.golden")
	for _, test := range []struct {
		name    string
		answers [][]byte
		entries int
		is      error
	}{
		{"empty", [][]byte{done}, 0, nil},
		{"two in one datagram", [][]byte{append(raw(newEntry, 2, 1, entry...), raw(newEntry, 2, 1, entry...)...), done}, 2, nil},
		{"in several datagrams", [][]byte{raw(newEntry, 2, 1, entry...), append(raw(newEntry, 2, 1, entry...), done...)}, 2, nil},
		{"answers to somebody else", [][]byte{raw(newEntry, 2, 77, entry...), raw(newEntry, 2, 1, entry...), done}, 1, nil},
		{"interrupted", [][]byte{raw(newEntry, 2|unix.NLM_F_DUMP_INTR, 1, entry...), done}, 1, ErrInterrupted},
		{"interrupted at the end", [][]byte{raw(unix.NLMSG_DONE, 2|unix.NLM_F_DUMP_INTR, 1, 0, 0, 0, 0)}, 0, ErrInterrupted},
		{"no privilege", [][]byte{raw(unix.NLMSG_ERROR, 0, 1, append(errno(unix.EPERM), make([]byte, nfnetlink.HeaderLen)...)...)}, 0, os.ErrPermission},
		{"no ctnetlink", [][]byte{raw(unix.NLMSG_ERROR, 0, 1, append(errno(unix.EOPNOTSUPP), make([]byte, nfnetlink.HeaderLen)...)...)}, 0, ErrUnavailable},
		{"the kernel's words", [][]byte{raw(unix.NLMSG_ERROR, unix.NLM_F_CAPPED|unix.NLM_F_ACK_TLVS, 1, words...)}, 0, unix.EINVAL},
		{"error at the end", [][]byte{raw(newEntry, 2, 1, entry...), raw(unix.NLMSG_DONE, 2, 1, errno(unix.ENOMEM)...)}, 1, unix.ENOMEM},
		{"malformed entry", [][]byte{raw(newEntry, 2, 1, 2, 0, 0, 0, 3, 0, 1, 0), done}, 0, nfnetlink.ErrMalformed},
		{"malformed message", [][]byte{{1, 2, 3}}, 0, nfnetlink.ErrMalformed},
		{"length beyond the datagram", [][]byte{raw(newEntry, 2, 1, entry...)[:100]}, 0, nfnetlink.ErrMalformed},
		{"silence", nil, 0, os.ErrDeadlineExceeded},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newConn(&fakeKernel{answers: test.answers}, &fakeKernel{}, t.TempDir())
			n := 0
			err := c.Dump(Filter{}, func(e *Entry) error {
				if e.ID != 99 {
					t.Errorf("entry %+v", e)
				}
				n++
				return nil
			})
			if n != test.entries || !errors.Is(err, test.is) {
				t.Errorf("%d entries, %v; want %d, %v", n, err, test.entries, test.is)
			}
			golden.Compare(t, test.name, fmt.Sprint(err))
		})
	}
}

// ctnetlink does not notice that the hash was resized under a dump.
func TestDumpNoticesResize(t *testing.T) {
	proc := t.TempDir()
	dir := filepath.Join(proc, "sys/net/netfilter")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(v string) {
		if err := os.WriteFile(filepath.Join(dir, "nf_conntrack_buckets"), []byte(v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("1024\n")
	kernel := &fakeKernel{answers: [][]byte{raw(unix.NLMSG_DONE, 2, 1, 0, 0, 0, 0), raw(unix.NLMSG_DONE, 2, 2, 0, 0, 0, 0)}}
	kernel.onRead = func() { write("2048\n") }
	c := newConn(kernel, &fakeKernel{}, proc)
	if err := c.Dump(Filter{}, nil); !errors.Is(err, ErrInterrupted) {
		t.Errorf("Dump = %v while the hash grew, want ErrInterrupted", err)
	}
	if err := c.Dump(Filter{}, nil); err != nil {
		t.Errorf("Dump = %v afterwards", err)
	}
}

// A kernel without ctnetlink calls every request to it invalid.
func TestNoSubsystem(t *testing.T) {
	invalid := raw(unix.NLMSG_ERROR, 0, 1, append(errno(unix.EINVAL), make([]byte, nfnetlink.HeaderLen)...)...)
	c := newConn(&fakeKernel{}, &fakeKernel{answers: [][]byte{invalid}}, t.TempDir())
	if _, _, err := c.Count(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Count() = %v, want ErrUnavailable", err)
	}
	c = newConn(&fakeKernel{}, &fakeKernel{answers: [][]byte{invalid}}, t.TempDir())
	if _, err := c.Stats(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Stats() = %v, want ErrUnavailable", err)
	}
}
