package cache

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/request"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"
)

// A client of a server gets the same reply whether it is written in bytes or as a message
// through a plugin that wants to see messages.
func TestRepliesInBytes(t *testing.T) {
	var many []string
	for i := range 60 {
		many = append(many, fmt.Sprintf("www.example.org. 300 IN A 192.0.2.%d", i))
	}
	one := many[:1]
	large := slices.Repeat([]string{`www.example.org. 300 IN TXT "` + strings.Repeat("x", 200) + `"`}, 10)
	for name, tc := range map[string]struct {
		records []string
		reply   func(*dns.Msg)
		query   func(*dns.Msg)
		bytes   bool
	}{
		"an address":            {records: one, bytes: true},
		"other letters":         {records: one, bytes: true, query: func(m *dns.Msg) { m.Question[0].Name = "wWw.ExAmple.org." }},
		"EDNS":                  {records: one, bytes: true, query: func(m *dns.Msg) { m.SetEdns0(1232, false) }},
		"DO":                    {records: one, bytes: true, query: func(m *dns.Msg) { m.SetEdns0(1232, true) }},
		"CD and AD":             {records: one, bytes: true, query: func(m *dns.Msg) { m.CheckingDisabled, m.AuthenticatedData = true, true }, reply: func(m *dns.Msg) { m.AuthenticatedData = true }},
		"AD not asked for":      {records: one, bytes: true, reply: func(m *dns.Msg) { m.AuthenticatedData = true }},
		"no recursion":          {records: one, bytes: true, query: func(m *dns.Msg) { m.RecursionDesired = false }},
		"a denial":              {bytes: true, reply: denies},
		"larger than 512 bytes": {records: many},
		"large, and accepted":   {records: many, bytes: true, query: func(m *dns.Msg) { m.SetEdns0(4096, false) }},
		"larger than a packet":  {records: large, query: func(m *dns.Msg) { m.SetEdns0(4096, false) }},
		"an EDNS option": {records: one, query: func(m *dns.Msg) {
			m.SetEdns0(1232, false).IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID}}
		}},
		"a small size announced": {records: one, bytes: true, query: func(m *dns.Msg) { m.SetEdns0(100, false) }},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCache(t, replies(func(m *dns.Msg) {
				if tc.reply != nil {
					tc.reply(m)
				}
			}, tc.records...), func(c *Cache) { c.now = func() time.Time { return time.Unix(1e9, 0) } })
			q := question(www, tc.query)
			exchange(t, c, q, false) // a miss
			want, packed := exchange(t, c, q, false)
			if packed {
				t.Error("a plugin that wants messages got bytes")
			}
			got, packed := exchange(t, c, q, true)
			if packed != tc.bytes {
				t.Errorf("written in bytes: %v", packed)
			}
			got.Id = want.Id
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(dns.RR_Header{}, "Rdlength")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// denies makes the reply a denial.
func denies(m *dns.Msg) {
	m.Rcode = dns.RcodeNameError
	m.Ns = []dns.RR{&dns.SOA{
		Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 300},
		Ns:  "ns.example.org.", Mbox: "root.example.org.", Minttl: 300,
	}}
}

// exchange asks a server of the cache over UDP. With known, only writers that pass bytes
// on are between. It reports whether the reply was written in bytes.
func exchange(t *testing.T, c *Cache, q *dns.Msg, known bool) (reply *dns.Msg, inBytes bool) {
	t.Helper()
	var packed atomic.Bool
	server := &dns.Server{Net: "udp", Addr: "127.0.0.1:0", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		w = &noting{request.NewScrubWriter(r, w), &packed}
		if !known {
			w = struct{ dns.ResponseWriter }{w}
		}
		_, _ = plugin.NextOrFailure("test", c, context.Background(), w, r)
	})}
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	done := make(chan error, 1)
	go func() { done <- server.ListenAndServe() }()
	select {
	case <-started:
	case err := <-done:
		t.Fatal(err)
	}
	defer func() { _ = server.Shutdown() }()
	client := dns.Client{Net: "udp", Timeout: 10 * time.Second, UDPSize: dns.MaxMsgSize}
	reply, _, err := client.Exchange(q, server.PacketConn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return reply, packed.Load()
}

// noting is a writer that notes whether bytes are written.
type noting struct {
	dns.ResponseWriter
	packed *atomic.Bool
}

func (w *noting) Beneath() dns.ResponseWriter { return w.ResponseWriter }

func (w *noting) Write(b []byte) (int, error) {
	w.packed.Store(true)
	return w.ResponseWriter.Write(b)
}
