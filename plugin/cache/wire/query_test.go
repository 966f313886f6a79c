package wire

import (
	"bytes"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// query packs a query for a name and type, changed by edit.
func query(t testing.TB, name string, qtype uint16, edit func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	m.Id = 0x1234
	if edit != nil {
		edit(m)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func withOption(m *dns.Msg) {
	m.SetEdns0(1232, false)
	opt := m.IsEdns0()
	opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
}

func TestParse(t *testing.T) {
	plain := query(t, "ExAmple.org.", dns.TypeA, nil)
	edns := query(t, "example.org.", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, true) })
	for _, tc := range []struct {
		name string
		msg  []byte
		want Reason
	}{
		{"plain", plain, Plain},
		{"EDNS", edns, Plain},
		{"root", query(t, ".", dns.TypeNS, nil), Plain},
		{"empty", nil, Malformed},
		{"header only", plain[:12], Malformed},
		{"cut in the name", plain[:16], Malformed},
		{"cut in the class", plain[:len(plain)-1], Malformed},
		{"byte after the question", append(bytes.Clone(plain), 0), Malformed},
		{"byte after the OPT record", append(bytes.Clone(edns), 0), Malformed},
		{"cut in the OPT record", edns[:len(edns)-1], Additional},
		{"response", query(t, "a.", 1, func(m *dns.Msg) { m.Response = true }), NotQuery},
		{"notify", query(t, "a.", 1, func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), NotQuery},
		{"no question", query(t, "a.example.", 1, func(m *dns.Msg) { m.Question = nil; m.SetEdns0(512, false) }), Sections},
		{"answer section", query(t, "a.", 1, func(m *dns.Msg) { m.Answer = []dns.RR{record(t, "a. 1 IN A 192.0.2.1")} }), Sections},
		{"authority section", query(t, "a.", 1, func(m *dns.Msg) { m.Ns = []dns.RR{record(t, "a. 1 IN NS b.")} }), Sections},
		{"additional A", query(t, "a.", 1, func(m *dns.Msg) { m.Extra = []dns.RR{record(t, "a. 1 IN A 192.0.2.1")} }), Additional},
		{"two additional", query(t, "a.", 1, func(m *dns.Msg) {
			m.SetEdns0(512, false)
			m.Extra = append(m.Extra, record(t, "a. 1 IN A 192.0.2.1"))
		}), Additional},
		{"EDNS version 1", query(t, "a.", 1, func(m *dns.Msg) { m.SetEdns0(512, false); m.IsEdns0().SetVersion(1) }), EDNSVersion},
		{"EDNS option", query(t, "a.", 1, withOption), EDNSOption},
		{"class CH", query(t, "a.", 1, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), NotInternet},
		{"compressed name", append(plain[:12:12], 0xc0, 0x0c, 0, 1, 0, 1), Compressed},
		{"name too long", append(plain[:12:12], strings.Repeat("\x01a", 200)...), Malformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var q Query
			if got := q.Parse(tc.msg); got != tc.want {
				t.Errorf("Parse = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestParseFields(t *testing.T) {
	var q Query
	msg := query(t, "WWW.Example.org.", dns.TypeAAAA, func(m *dns.Msg) {
		m.SetEdns0(1232, true)
		m.CheckingDisabled, m.AuthenticatedData = true, true
	})
	if r := q.Parse(msg); r != Plain {
		t.Fatal(r)
	}
	if q.ID != 0x1234 || q.Type != dns.TypeAAAA || q.Class != dns.ClassINET || q.Size != 1232 || !q.RD || !q.AD || !q.CD || !q.EDNS || !q.DO {
		t.Errorf("fields of a query with everything set: %+v", q)
	}
	want, _ := AppendKey(nil, "www.example.org.", dns.TypeAAAA, dns.ClassINET, DO|CD)
	if !bytes.Equal(q.Key(), want) {
		t.Errorf("key %q, want %q", q.Key(), want)
	}
	// The same Query again: nothing of the first may remain.
	if r := q.Parse(query(t, "a.", dns.TypeA, func(m *dns.Msg) { m.RecursionDesired = false })); r != Plain {
		t.Fatal(r)
	}
	if q.Size != MinSize || q.RD || q.AD || q.CD || q.EDNS || q.DO || q.Key().Bits() != NoRD {
		t.Errorf("fields left over from the query before: %+v", q)
	}
}

func TestReasonLabels(t *testing.T) {
	seen := map[string]bool{}
	for r := Plain; r < Reasons; r++ {
		if r.String() == "" || seen[r.String()] {
			t.Errorf("reason %d has no label of its own: %q", r, r)
		}
		seen[r.String()] = true
	}
}

// FuzzParse holds Parse against miekg/dns: what Parse reads, miekg/dns reads
// alike, and what miekg/dns sees as a plain query, Parse reads.
func FuzzParse(f *testing.F) {
	f.Add(query(f, "Example.org.", dns.TypeA, nil))
	f.Add(query(f, "example.org.", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(4096, true) }))
	f.Add(query(f, "example.org.", dns.TypeA, withOption))
	f.Add(query(f, ".", dns.TypeNS, nil))
	f.Add(query(f, `\000\.\255.example.`, dns.TypeTXT, nil))
	f.Add(query(f, "example.org.", dns.TypeA, func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }))
	f.Fuzz(func(t *testing.T, msg []byte) {
		var q Query
		reason := q.Parse(msg)
		m := new(dns.Msg)
		err := m.Unpack(msg)
		if reason != Plain {
			if err == nil && isPlain(msg, m) {
				t.Fatalf("Parse says %v to a plain query: %x\n%v", reason, msg, m)
			}
			return
		}
		if err != nil {
			t.Fatalf("miekg/dns refuses %x: %v", msg, err)
		}
		opt := m.IsEdns0()
		if m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 || len(m.Answer)+len(m.Ns) != 0 || len(m.Extra) > 1 || (opt == nil) == q.EDNS {
			t.Fatalf("not a plain query: %v", m)
		}
		if q.ID != m.Id || q.RD != m.RecursionDesired || q.AD != m.AuthenticatedData || q.CD != m.CheckingDisabled {
			t.Fatalf("header of %+v is not that of %v", q, m)
		}
		var bits Bits
		var do bool
		if opt != nil {
			if do = opt.Do(); do {
				bits |= DO
			}
			if q.Size != max(opt.UDPSize(), dns.MinMsgSize) || q.DO != do || opt.Version() != 0 || len(opt.Option) != 0 {
				t.Fatalf("EDNS of %+v is not that of %v", q, m)
			}
		}
		if m.CheckingDisabled {
			bits |= CD
		}
		if !m.RecursionDesired {
			bits |= NoRD
		}
		key, err := AppendKey(nil, m.Question[0].Name, m.Question[0].Qtype, m.Question[0].Qclass, bits)
		if err != nil || !bytes.Equal(key, q.Key()) {
			t.Fatalf("key of %x: %q from bytes, %q from %q (%v)", msg, q.Key(), key, m.Question[0].Name, err)
		}
		sameFromMessage(t, &q, msg, m, key)
	})
}

// sameFromMessage holds FromMessage against what Parse has read from the same query.
func sameFromMessage(t *testing.T, parsed *Query, msg []byte, m *dns.Msg, key Key) {
	t.Helper()
	var q Query
	buf := make([]byte, len(msg))
	escaped := strings.Contains(m.Question[0].Name, `\`) || m.Question[0].Name == "."
	if q.FromMessage(buf, m, key) == escaped {
		t.Fatalf("FromMessage of %x returns %v", msg, !escaped)
	}
	if escaped {
		return
	}
	if !bytes.Equal(buf[headerLen:q.end], msg[headerLen:parsed.end]) {
		t.Fatalf("question of %x: %x", msg, buf[headerLen:q.end])
	}
	want := *parsed
	want.key, want.keyLen = q.key, q.keyLen // not set by FromMessage
	if q != want {
		t.Fatalf("query of %x:\n%+v from the message\n%+v from bytes", msg, q, want)
	}
}

// A query whose reply needs more than Reply can do is left to others.
func TestFromMessageRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*dns.Msg)
		room int
	}{
		"an EDNS option":          {withOption, 512},
		"two additional records":  {func(m *dns.Msg) { m.SetEdns0(1232, false).SetEdns0(1232, false) }, 512},
		"TSIG":                    {func(m *dns.Msg) { m.SetTsig("key.", dns.HmacSHA256, 300, 0) }, 512},
		"a record in the answer":  {func(m *dns.Msg) { m.Answer = records(t, "example.org. 1 IN A 192.0.2.1") }, 512},
		"a record in authority":   {func(m *dns.Msg) { m.Ns = records(t, "example.org. 1 IN A 192.0.2.1") }, 512},
		"opcode UPDATE":           {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, 512},
		"an escape":               {func(m *dns.Msg) { m.Question[0].Name = `a\.example.org.` }, 512},
		"an escape, no final dot": {func(m *dns.Msg) { m.Question[0].Name = `a\.example.org` }, 512},
		"no final dot":            {func(m *dns.Msg) { m.Question[0].Name = `a.example.org` }, 512},
		"no room":                 {nil, 12 + 13 + 3},
	} {
		t.Run(name, func(t *testing.T) {
			m := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
			if tc.edit != nil {
				tc.edit(m)
			}
			key, err := AppendKey(nil, m.Question[0].Name, m.Question[0].Qtype, m.Question[0].Qclass, 0)
			if err != nil {
				t.Fatal(err)
			}
			if new(Query).FromMessage(make([]byte, tc.room), m, key) {
				t.Error("FromMessage accepts it")
			}
		})
	}
}

// isPlain tells from the message that miekg/dns read whether Parse must have
// read it too. Repacking finds compression and bytes after the end.
func isPlain(msg []byte, m *dns.Msg) bool {
	if m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 || m.Question[0].Qclass != dns.ClassINET || len(m.Answer)+len(m.Ns) != 0 {
		return false
	}
	switch opt := m.IsEdns0(); {
	case len(m.Extra) == 0:
	case len(m.Extra) == 1 && opt != nil && opt.Hdr.Name == "." && opt.Version() == 0 && len(opt.Option) == 0:
	default:
		return false
	}
	if int(be16(msg[10:])) != len(m.Extra) || be16(msg[6:])|be16(msg[8:]) != 0 {
		return false // counts that promise more than there is
	}
	m.Rcode &= 15
	packed, err := m.Pack()
	return err == nil && len(packed) == len(msg)
}
