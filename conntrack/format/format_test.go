package format_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/format"
)

// service is a DNS query over a Service address, as kube-proxy leaves it.
func service() *conntrack.Entry {
	e := &conntrack.Entry{
		Original: conntrack.Tuple{Src: netip.MustParseAddr("10.244.0.11"), Dst: netip.MustParseAddr("10.96.0.10"), SrcPort: 40000, DstPort: 53, Proto: conntrack.UDP},
		Reply:    conntrack.Tuple{Src: netip.MustParseAddr("10.244.0.53"), Dst: netip.MustParseAddr("10.244.0.11"), SrcPort: 5353, DstPort: 40000, Proto: conntrack.UDP},
		Status:   conntrack.StatusConfirmed | conntrack.StatusSeenReply | conntrack.StatusDstNAT,
		Timeout:  29 * time.Second,
		Mark:     0x4000,
		ID:       77,
		Use:      1,
	}
	e.SetFields(conntrack.FieldStatus | conntrack.FieldTimeout | conntrack.FieldMark | conntrack.FieldID | conntrack.FieldUse)
	return e
}

func write(t *testing.T, name string, events bool, entries ...*conntrack.Entry) string {
	t.Helper()
	var b bytes.Buffer
	w, err := format.New(name, &b)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if events {
			err = w.Event(conntrack.EventNew, e)
		} else {
			err = w.Entry(e)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestFormats(t *testing.T) {
	offloaded := service()
	offloaded.Status |= conntrack.StatusOffload | conntrack.StatusAssured
	offloaded.SetFields(conntrack.FieldStatus | conntrack.FieldUse)
	hardware := service()
	hardware.Status = conntrack.StatusOffload | conntrack.StatusHWOffload
	hardware.SetFields(conntrack.FieldStatus | conntrack.FieldUse)
	object := `{"family":"ipv4","protocol":"udp","protocol_number":17,"state":"REPLIED","timeout_seconds":29,` +
		`"status":["SEEN_REPLY","CONFIRMED","DST_NAT"],"nat":"dnat","dns":true,` +
		`"original":{"src":"10.244.0.11","dst":"10.96.0.10","sport":40000,"dport":53},` +
		`"reply":{"src":"10.244.0.53","dst":"10.244.0.11","sport":5353,"dport":40000},"mark":16384,"id":77,"use":1}`

	for _, test := range []struct {
		name, format string
		events       bool
		entries      []*conntrack.Entry
		want         string
	}{
		{"table", "table", false, []*conntrack.Entry{service()}, "" +
			"PROTO   STATE        TIMEOUT   SOURCE                 DESTINATION            NAT   TO\n" +
			"udp     REPLIED      29s       10.244.0.11:40000      10.96.0.10:53          dnat  10.244.0.53:5353\n"},
		{"empty table", "table", false, nil, "no entries\n"},
		{"json", "json", false, []*conntrack.Entry{service(), service()}, "[\n  " + object + ",\n  " + object + "\n]\n"},
		{"empty json", "json", false, nil, "[]\n"},
		{"jsonl", "jsonl", false, []*conntrack.Entry{service(), service()}, object + "\n" + object + "\n"},
		{"jsonl event", "jsonl", true, []*conntrack.Entry{service()}, `{"event":"NEW",` + object[1:] + "\n"},
		{"empty yaml", "yaml", false, nil, "---\n[]\n"},
		{"conntrack", "conntrack", false, []*conntrack.Entry{service()},
			"udp      17 29 src=10.244.0.11 dst=10.96.0.10 sport=40000 dport=53 src=10.244.0.53 dst=10.244.0.11 sport=5353 dport=40000 mark=16384 use=1\n"},
		{"conntrack event", "conntrack", true, []*conntrack.Entry{service()},
			"    [NEW] udp      17 29 src=10.244.0.11 dst=10.96.0.10 sport=40000 dport=53 src=10.244.0.53 dst=10.244.0.11 sport=5353 dport=40000 mark=16384 use=1\n"},
		// The kernel sends no timeout for entries in a flow table, and the
		// library prints one of the three flags only.
		{"offloaded", "conntrack", false, []*conntrack.Entry{offloaded},
			"udp      17 src=10.244.0.11 dst=10.96.0.10 sport=40000 dport=53 src=10.244.0.53 dst=10.244.0.11 sport=5353 dport=40000 [OFFLOAD] use=1\n"},
		{"offloaded to hardware", "conntrack", false, []*conntrack.Entry{hardware},
			"udp      17 src=10.244.0.11 dst=10.96.0.10 sport=40000 dport=53 [UNREPLIED] src=10.244.0.53 dst=10.244.0.11 sport=5353 dport=40000 [HW_OFFLOAD] use=1\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := write(t, test.format, test.events, test.entries...); got != test.want {
				t.Errorf("got\n%swant\n%s", got, test.want)
			}
		})
	}
}

// Every kind of entry must come back from JSON and YAML the same, whatever the
// names in it hold.
func TestJSONAndYAMLAgree(t *testing.T) {
	entries := zoo()
	odd := service()
	odd.Helper, odd.Secctx = "a\"b\\c\n\x00\xff: - [{", "system_u:object_r:\x7f\u2028"
	odd.Master = odd.Original
	odd.Start, odd.Stop = time.Unix(1, 5), time.Unix(2, 0)
	odd.SetFields(^conntrack.Field(0))
	entries = append(entries, odd)

	var fromJSON, fromYAML []map[string]any
	if err := json.Unmarshal([]byte(write(t, "json", true, entries...)), &fromJSON); err != nil {
		t.Fatal(err)
	}
	text := write(t, "yaml", true, entries...)
	if err := yaml.Unmarshal([]byte(text), &fromYAML); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	a, err := json.Marshal(fromJSON)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(fromYAML)
	if err != nil {
		t.Fatal(err)
	}
	if len(fromJSON) != len(entries) || !bytes.Equal(a, b) {
		t.Errorf("%d entries\njson %s\nyaml %s", len(fromJSON), a, b)
	}
	if got := fromJSON[len(entries)-1]["helper"]; got != "a\"b\\c\n\x00\ufffd: - [{" {
		t.Errorf("helper %q", got)
	}
	if lines := strings.Count(write(t, "jsonl", false, entries...), "\n"); lines != len(entries) {
		t.Errorf("jsonl has %d lines for %d entries", lines, len(entries))
	}
}

func TestTableColumnsGrow(t *testing.T) {
	long := service()
	long.Original.Src = netip.MustParseAddr("2001:db8:1111:2222:3333:4444:5555:6666")
	lines := strings.Split(write(t, "wide", false, service(), long, service()), "\n")
	if strings.Index(lines[2], "10.96.0.10:53") != strings.Index(lines[3], "10.96.0.10:53") {
		t.Errorf("columns do not line up after a wide value:\n%s", strings.Join(lines, "\n"))
	}
}

func TestUnknownFormat(t *testing.T) {
	if _, err := format.New("xml", io.Discard); err == nil || !strings.Contains(err.Error(), "jsonl") {
		t.Errorf("New(xml) = %v, want an error that lists the formats", err)
	}
}

func TestWritingAllocatesNothing(t *testing.T) {
	for _, name := range format.Names {
		t.Run(name, func(t *testing.T) {
			w, err := format.New(name, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			e := service()
			if err := w.Entry(e); err != nil { // grows the buffers
				t.Fatal(err)
			}
			if n := testing.AllocsPerRun(100, func() { _ = w.Entry(e) }); n > 1 {
				t.Errorf("%v allocations per entry", n)
			}
		})
	}
}

func BenchmarkEntry(b *testing.B) {
	for _, name := range format.Names {
		b.Run(name, func(b *testing.B) {
			w, err := format.New(name, io.Discard)
			if err != nil {
				b.Fatal(err)
			}
			e := service()
			b.ReportAllocs()
			for b.Loop() {
				if err := w.Entry(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
