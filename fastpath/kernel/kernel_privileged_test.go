//go:build privileged

package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/fastpath"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/plugin/cache/wire"
)

// Verdicts of tc programs.
const (
	passOn   = 0xffffffff
	redirect = 7
)

func load(t testing.TB) *Program {
	t.Helper()
	return loadSize(t, 1<<20)
}

func loadSize(t testing.TB, size int) *Program {
	t.Helper()
	testns.Root(t)
	p, err := Load(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := p.Bridge(1, bridgeMAC); err != nil {
		t.Fatal(err)
	}
	return p
}

var (
	pod4, node4 = netip.MustParseAddr("10.244.1.7"), netip.MustParseAddr("10.96.0.10")
	pod6, node6 = netip.MustParseAddr("fd00::7"), netip.MustParseAddr("fd00:96::a")
)

// packet is an Ethernet frame with the payload over UDP, with sums as a device
// without offload has them.
func packet(from, to netip.AddrPort, payload []byte) []byte {
	udp := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	udp = append(udp, payload...)
	check := ^udpSum(from.Addr(), to.Addr(), udp)
	if check == 0 {
		check = 0xffff // zero says that there is none (RFC 768)
	}
	binary.LittleEndian.PutUint16(udp[6:], check)
	frame := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	if from.Addr().Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
		ip[6] = 0x40
		copy(ip[12:], from.Addr().AsSlice())
		copy(ip[16:], to.Addr().AsSlice())
		binary.LittleEndian.PutUint16(ip[10:], ^sum(ip))
		return append(append(append(frame, 8, 0), ip...), udp...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, unix.IPPROTO_UDP, 64
	binary.BigEndian.PutUint16(ip[4:], uint16(len(udp)))
	copy(ip[8:], from.Addr().AsSlice())
	copy(ip[24:], to.Addr().AsSlice())
	return append(append(append(frame, 0x86, 0xdd), ip...), udp...)
}

// udpSum is the sum of a datagram with its pseudo header.
func udpSum(from, to netip.Addr, udp []byte) uint16 {
	b := append(from.AsSlice(), to.AsSlice()...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(udp)))
	b = append(b, 0, 0, 0, unix.IPPROTO_UDP)
	return sum(append(b, udp...))
}

// unpack checks a frame's addresses and sums, and returns the UDP payload.
func unpack(frame []byte, from, to netip.AddrPort) ([]byte, error) {
	if !bytes.Equal(frame[:12], []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}) {
		return nil, fmt.Errorf("hardware addresses %x", frame[:12])
	}
	ip, n := frame[14:], 20
	if from.Addr().Is4() {
		if s := sum(ip[:20]); s != 0xffff {
			return nil, fmt.Errorf("the IP header's sum is wrong by %04x", ^s)
		}
		if int(binary.BigEndian.Uint16(ip[2:])) != len(ip) {
			return nil, fmt.Errorf("IP length %d of %d", binary.BigEndian.Uint16(ip[2:]), len(ip))
		}
	} else {
		n = 40
		if int(binary.BigEndian.Uint16(ip[4:])) != len(ip)-n {
			return nil, fmt.Errorf("IP length %d of %d", binary.BigEndian.Uint16(ip[4:]), len(ip)-n)
		}
	}
	want := packet(from, to, ip[n+8:])
	if !bytes.Equal(want[14:], ip) {
		return nil, fmt.Errorf("got headers and sums\n%x\nwant\n%x", ip[:n+8], want[14:][:n+8])
	}
	return ip[n+8:], nil
}

func (p *Program) run(frame []byte) (verdict uint32, out []byte, err error) {
	return p.collection.Programs["trackless_answer"].Test(frame)
}

// message packs an answer and returns its key.
func message(t testing.TB, name string, qtype uint16, rcode int, bits wire.Bits, answer, ns []string) (wire.Key, wire.Answer) {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	m.Response, m.Rcode, m.RecursionAvailable = true, rcode, true
	for section, lines := range map[*[]dns.RR][]string{&m.Answer: answer, &m.Ns: ns} {
		for _, line := range lines {
			rr, err := dns.NewRR(line)
			if err != nil {
				t.Fatal(err)
			}
			*section = append(*section, rr)
		}
	}
	key, err := wire.AppendKey(nil, dns.Fqdn(name), qtype, dns.ClassINET, bits)
	if err != nil {
		t.Fatal(err)
	}
	a, err := wire.Pack(m)
	if err != nil {
		t.Fatal(err)
	}
	return key, a
}

// corpus is records of every size and shape: names of all lengths that
// records hold, bodies of even and odd lengths, one or many TTLs.
func corpus(t testing.TB) (records []fastpath.Record) {
	t.Helper()
	add := func(name string, qtype uint16, rcode int, answer, ns []string) {
		for _, bits := range []wire.Bits{0, wire.DO} {
			key, a := message(t, name, qtype, rcode, bits, answer, ns)
			records = append(records, fastpath.Record{Key: key, Answer: a, TTL: 30, Serve: 30, Class: uint16(len(records) % Classes)})
		}
	}
	label := "abcdefghijklmnopqrstuvwxyz-0123456789-abcdefghijklmnopqrstuvwxyz"
	for n := 1; n <= 126; n++ {
		if n == 61 || n == 122 {
			continue // a dot at the end
		}
		name := label[:min(n, 60)]
		if n > 61 {
			name += "." + label[:min(n-61, 60)]
		}
		if n > 122 {
			name += "." + label[:n-121]
		}
		if len(name)+2 > MaxName {
			continue
		}
		add(name, dns.TypeA, 0, []string{name + ". 30 IN A 192.0.2.1"}, nil)
		add(name, dns.TypeAAAA, dns.RcodeNameError, nil, []string{"example. 30 IN SOA ns.example. root.example. 1 2 3 4 5"})
	}
	for n := range 40 {
		name := fmt.Sprintf("txt%d.example.", n)
		add(name, dns.TypeTXT, 0, []string{name + " 30 IN TXT \"" + label[:n] + "\"", name + " 30 IN TXT \"x\"", name + " 30 IN TXT \"yy\""}, nil)
	}
	for n := 1; n <= MaxRecords; n++ {
		name := fmt.Sprintf("a%d.example.", n)
		var answer []string
		for i := range n {
			answer = append(answer, fmt.Sprintf("%s 30 IN A 192.0.2.%d", name, i))
		}
		add(name, dns.TypeA, 0, answer, nil)
	}
	add(".", dns.TypeNS, 0, []string{". 30 IN NS a.root-servers.net."}, nil)
	return records
}

// A query that the program answers gets the bytes that the cache would give.
func TestAnswersAreTheCaches(t *testing.T) {
	t.Parallel()
	p := load(t)
	const group = 5
	for _, addr := range []netip.Addr{node4, node6} {
		if err := p.Listen(netip.AddrPortFrom(addr, 53), group, 1<<16-1); err != nil {
			t.Fatal(err)
		}
	}
	p.Open(group, time.Now().Add(time.Hour))
	records := corpus(t)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range records {
		r := &records[i]
		r.Listener = group
		for round := range 4 {
			query := ask(random, r)
			// A quarter of a second after one of its seconds has begun.
			now := time.Now()
			r.Stored = now.Add(-time.Duration(i%20)*time.Second - 250*time.Millisecond)
			if err := publishTo(p.Table, r); err != nil {
				t.Fatal(err)
			}
			from, to := netip.AddrPortFrom(pod4, 40000), netip.AddrPortFrom(node4, 53)
			if round&1 == 1 {
				from, to = netip.AddrPortFrom(pod6, 40000), netip.AddrPortFrom(node6, 53)
			}
			frame := packet(from, to, query)
			verdict, out, err := p.run(frame)
			if err != nil {
				t.Fatal(err)
			}
			var q wire.Query
			if reason := q.Parse(query); reason != wire.Plain {
				t.Fatal(reason)
			}
			if q.ReplyLen(&r.Answer) > int(q.Size) {
				if verdict != passOn || !bytes.Equal(out, frame) {
					t.Errorf("%q: too large, and the program did not pass it on unchanged", r.Key)
				}
				continue
			}
			if verdict != redirect {
				t.Errorf("%q: verdict %#x", r.Key, verdict)
				continue
			}
			got, err := unpack(out, to, from)
			if err != nil {
				t.Errorf("%q %x: %v", r.Key, query, err)
				continue
			}
			want := make([]byte, 1500)
			want = want[:q.Reply(want, query, &r.Answer, r.TTL-uint32(i%20))]
			if !bytes.Equal(got, want) && time.Since(now) < 700*time.Millisecond { // else the machine stalled
				t.Errorf("%q: got\n%x\nwant\n%x", r.Key, got, want)
			}
		}
	}
}

// The program does to queries, mutated ones and noise what the model says: it gives
// the same reply, or passes the frame on unchanged.
func TestAgreesWithTheModel(t *testing.T) {
	t.Parallel()
	p := load(t)
	m := &model{groups: map[netip.AddrPort]uint8{}, records: map[string]*fastpath.Record{}, sizes: [2]uint16{1232, 4096}}
	for i, addr := range []netip.Addr{node4, node6} {
		listener := netip.AddrPortFrom(addr, 53)
		m.groups[listener] = uint8(1 + i)
		if err := p.Listen(listener, uint8(1+i), m.sizes[i]); err != nil {
			t.Fatal(err)
		}
		p.Open(uint8(1+i), time.Now().Add(time.Hour))
	}
	records := corpus(t)
	random := rand.New(rand.NewPCG(rand.Uint64(), 3))
	answered := 0
	for round := range rounds {
		if time.Since(m.now) > 500*time.Millisecond { // the records' next second is near
			m.now = time.Now()
			for i := range records {
				r := &records[i]
				r.Listener, r.TTL, r.Serve = uint8(1+i&1), 300, 30
				r.Stored = m.now.Add(-time.Duration(i%32)*time.Second - 250*time.Millisecond)
				m.add(r)
				if err := publishTo(p.Table, r); err != nil {
					t.Fatal(err)
				}
			}
		}
		frame := mutate(random, &records[random.IntN(len(records))])
		verdict, out, err := p.run(frame)
		if errors.Is(err, unix.EINVAL) && len(frame) < 14+40 {
			continue // the kernel plays no such frame
		}
		if err != nil {
			t.Fatal(err)
		}
		want := m.answer(frame)
		switch {
		case want == nil && verdict == passOn && bytes.Equal(out, frame):
		case want != nil && verdict == redirect && sameReply(out, want, frame):
			answered++
		case time.Since(m.now) > 700*time.Millisecond: // the machine stalled: the next second has come
		default:
			t.Fatalf("round %d: verdict %#x for\n%x\ngot\n%x\nwant\n%x", round, verdict, frame, out, want)
		}
	}
	if answered < rounds/10 {
		t.Errorf("%d of %d frames were answered: the mutations are too wild", answered, rounds)
	}
}

// rounds is how many frames the model is asked about.
const rounds = 100_000

// mutate is a query for the record, often with a fault or two.
func mutate(random *rand.Rand, r *fastpath.Record) []byte {
	query := ask(random, r)
	from, to := netip.AddrPortFrom(pod4, 40000), netip.AddrPortFrom(node4, 53)
	if r.Listener == 2 {
		from, to = netip.AddrPortFrom(pod6, 40000), netip.AddrPortFrom(node6, 53)
	}
	flip := func(b []byte) { b[random.IntN(len(b))] ^= 1 << random.IntN(8) }
	switch random.IntN(8) {
	case 0:
		flip(query)
	case 1:
		flip(query[:12])
	case 2:
		flip(query[12:])
	case 3:
		query = query[:random.IntN(len(query)+1)]
	case 4:
		query = append(query, make([]byte, random.IntN(40))...)
	}
	frame := packet(from, to, query)
	switch random.IntN(8) {
	case 0:
		flip(frame)
	case 1:
		flip(frame[12:min(len(frame), 14+40+8)])
	case 2:
		frame = frame[:max(14, random.IntN(len(frame)+1))]
	case 3:
		frame = append(frame, make([]byte, random.IntN(20))...)
	case 4:
		ip := 20 // no sum
		if r.Listener == 2 {
			ip = 40
		}
		clear(frame[14+ip+6:][:2])
	case 5:
		frame[0] |= byte(random.IntN(2)) // a group of hardware addresses
	case 6:
		if clear(frame[:6]); random.IntN(2) == 0 {
			frame[random.IntN(6)] = 2 // another host
		}
	}
	return frame
}

// sameReply reports whether the frame is the one that the model says, with sums
// that are right where the query's were right, wrong by the same where they were
// wrong, and absent where they were absent.
func sameReply(got, want, query []byte) bool {
	n := 20
	if want[12] == 0x86 {
		n = 40
	}
	if len(got) != len(want) || fault(got, n) != fault(query, n) {
		return false
	}
	plain := bytes.Clone(got)
	clear(plain[14+n+6:][:2])
	if n == 20 {
		if sum(got[14:][:20]) != sum(query[14:][:20]) {
			return false
		}
		clear(plain[14+10:][:2])
	}
	return bytes.Equal(plain, want)
}

// fault is by how much the UDP sum of the frame with an IP header of n bytes is
// wrong. All ones stand for an absent sum over IPv4.
func fault(frame []byte, n int) uint16 {
	udp := frame[14+n:]
	udp = udp[:binary.BigEndian.Uint16(udp[4:])]
	if n == 20 && udp[6] == 0 && udp[7] == 0 {
		return 0xffff
	}
	if n == 20 {
		return ^udpSum(netip.AddrFrom4([4]byte(frame[14+12:])), netip.AddrFrom4([4]byte(frame[14+16:])), udp)
	}
	return ^udpSum(netip.AddrFrom16([16]byte(frame[14+8:])), netip.AddrFrom16([16]byte(frame[14+24:])), udp)
}

// ask is a query for the record, in letters of either case, with or without EDNS.
func ask(random *rand.Rand, r *fastpath.Record) []byte {
	query := binary.BigEndian.AppendUint16(nil, uint16(random.Uint32()))
	do := r.Key.Bits()&wire.DO != 0
	edns := do || random.IntN(2) == 0
	flags := uint16(0x0100)
	if random.IntN(2) == 0 {
		flags |= 0x20
	}
	query = binary.BigEndian.AppendUint16(query, flags)
	query = append(query, 0, 1, 0, 0, 0, 0, 0, 0)
	if edns {
		query[11] = 1
	}
	for _, c := range r.Key.Name() {
		if 'a' <= c && c <= 'z' && random.IntN(2) == 0 {
			c -= 'a' - 'A'
		}
		query = append(query, c)
	}
	query = binary.BigEndian.AppendUint16(query, r.Key.Type())
	query = append(query, 0, 1)
	if edns {
		sizes := []uint16{0, 512, 1232, 4096}
		query = append(query, 0, 0, 41)
		query = binary.BigEndian.AppendUint16(query, sizes[random.IntN(4)])
		query = append(query, 0, 0, byte(random.IntN(128)), 0, 0, 0)
		if do {
			query[len(query)-4] |= 0x80
		}
	}
	return query
}

// A hit is counted in its class and variant, its flow is reported, and its record
// knows of it.
func TestHitsAreCounted(t *testing.T) {
	t.Parallel()
	p := load(t)
	key, a := message(t, "www.example.", dns.TypeA, 0, 0, []string{"www.example. 30 IN A 192.0.2.1"}, nil)
	r := &fastpath.Record{Listener: 3, Key: key, Answer: a, TTL: 30, Serve: 30, Class: 77, Stored: time.Now()}
	if err := publishTo(p.Table, r); err != nil {
		t.Fatal(err)
	}
	flows, err := p.Flows()
	if err != nil {
		t.Fatal(err)
	}
	defer flows.Close()
	random := rand.New(rand.NewPCG(5, 6))
	var want [variants]uint64
	for i, addr := range []netip.Addr{node4, node6, node4, node6, node4} {
		if err := p.Listen(netip.AddrPortFrom(addr, 53), 3, 1<<16-1); err != nil {
			t.Fatal(err)
		}
		p.Open(3, time.Now().Add(time.Hour))
		from := netip.AddrPortFrom(pod4, uint16(40000+i))
		if addr == node6 {
			from = netip.AddrPortFrom(pod6, uint16(40000+i))
		}
		query := ask(random, r)
		verdict, _, err := p.run(packet(from, netip.AddrPortFrom(addr, 53), query))
		if err != nil || verdict != redirect {
			t.Fatalf("verdict %#x: %v", verdict, err)
		}
		v := 0
		if query[11] == 1 {
			v |= 1
		}
		if addr == node6 {
			v |= 2
		}
		want[v]++
	}
	if got, err := p.Hits(77); err != nil || got != want {
		t.Errorf("hits %v, want %v (%v)", got, want, err)
	}
	if err := flows.Wait(time.Time{}); err != nil {
		t.Fatal(err)
	}
	var seen []Flow
	if err := flows.Each(func(f Flow) { seen = append(seen, f) }); err != nil || len(seen) != 5 {
		t.Fatalf("%d flows: %v", len(seen), err)
	}
	if f := (Flow{netip.AddrPortFrom(pod6, 40001), netip.AddrPortFrom(node6, 53)}); seen[1] != f {
		t.Errorf("flow %v, want %v", seen[1], f)
	}
	uses := uint32(0)
	p.Table.Uses(func(f func()) { f() }, func(class uint16, listener uint8, key wire.Key, n uint32) {
		if class == 77 && listener == 3 && string(key) == string(r.Key) {
			uses += n
		}
	})
	if uses != 5 {
		t.Errorf("%d uses of the record", uses)
	}
	p.Table.Uses(func(f func()) { f() }, func(uint16, uint8, wire.Key, uint32) { t.Error("a use is told twice") })
}

// A listener that is closed, or that is no more, answers nothing.
func TestClosedListeners(t *testing.T) {
	t.Parallel()
	p := load(t)
	key, a := message(t, "www.example.", dns.TypeA, 0, 0, []string{"www.example. 30 IN A 192.0.2.1"}, nil)
	r := &fastpath.Record{Key: key, Answer: a, TTL: 30, Serve: 30, Stored: time.Now()}
	if err := publishTo(p.Table, r); err != nil {
		t.Fatal(err)
	}
	server := netip.AddrPortFrom(node4, 53)
	frame := packet(netip.AddrPortFrom(pod4, 40000), server, ask(rand.New(rand.NewPCG(5, 6)), r))
	verdict := func() uint32 {
		v, _, err := p.run(frame)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if err := p.Listen(server, 0, 1<<16-1); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		do   func()
		want uint32
	}{
		{"never opened", func() {}, passOn},
		{"open", func() { p.Open(0, time.Now().Add(time.Hour)) }, redirect},
		{"closed", func() { p.Open(0, time.Time{}) }, passOn},
		{"another is open", func() { p.Open(1, time.Now().Add(time.Hour)) }, passOn},
		{"open again", func() { p.Open(0, time.Now().Add(time.Hour)) }, redirect},
		{"gone", func() {
			if err := p.Ignore(server); err != nil {
				t.Error(err)
			}
		}, passOn},
	} {
		if step.do(); verdict() != step.want {
			t.Errorf("%s: not %#x", step.name, step.want)
		}
	}
}
