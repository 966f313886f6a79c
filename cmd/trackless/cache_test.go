//go:build privileged

package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/iptables/owner"
	"github.com/trackless-dns/trackless/node/instance"
	"github.com/trackless-dns/trackless/node/nodetest"
)

func runCache(t *testing.T, node instance.Node, args ...string) (string, int, error) {
	t.Helper()
	cmd := cacheCommandOn(func() instance.Node { return node })
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), cli.ExitStatus(err), err
}

// aCache is an instance with something of each kind in its caches.
func aCache(name string, pid int) *nodetest.Socket {
	s := nodetest.NewSocket(name, pid, "trackless-b")
	cluster := control.CacheBlock{ServerBlock: "dns://cluster.local.:53", Bind: []string{"169.254.20.10", "10.96.0.10"}, Zones: []string{"cluster.local."}}
	inside := control.CacheBlock{ServerBlock: "dns://.:53", Bind: []string{}, View: "inside", Zones: []string{"."}}
	stored := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	soa := []string{"cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"}
	s.Content = control.CacheContent{More: 7, Answers: []control.CachedAnswer{
		{
			CacheBlock: inside, Name: "web.example.org.", Type: "A", Class: "IN", Flags: []string{"do", "cd"}, Kind: "positive", Rcode: "NOERROR",
			Answer: []string{"web.example.org. 0 IN CNAME lb.example.net.", "lb.example.net. 0 IN A 192.0.2.1"}, Authority: []string{}, Additional: []string{},
			Stored: stored, AgeSeconds: 400, StoredTTLSeconds: 300, StaleSeconds: 100, Uses: 3, UsesOrMore: true, Source: "192.0.2.53:53",
		},
		{
			CacheBlock: cluster, Name: "web.cluster.local.", Type: "AAAA", Class: "IN", Flags: []string{}, Kind: "nodata", Rcode: "NOERROR",
			Answer: []string{}, Authority: soa, Additional: []string{}, Stored: stored, AgeSeconds: 2, StoredTTLSeconds: 5, TTLSeconds: 3, Uses: 1,
		},
		{
			CacheBlock: cluster, Name: "web.cluster.local.", Type: "TXT", Class: "IN", Flags: []string{}, Kind: "failure", Rcode: "SERVFAIL",
			Answer: []string{}, Authority: []string{}, Additional: []string{}, Stored: stored, StoredTTLSeconds: 5, TTLSeconds: 5, Uses: 2, Source: "10.96.0.99:53",
		},
	}}
	s.Flushed = control.CacheRemoved{Caches: []control.CacheFlushed{
		{CacheBlock: inside, Positive: 2, OtherNames: 1}, {CacheBlock: cluster, Denials: 1, Failures: 1}, {CacheBlock: control.CacheBlock{ServerBlock: "dns://untouched.:53"}},
	}}
	return s
}

func TestCacheGolden(t *testing.T) {
	for _, tc := range []struct {
		golden string
		args   []string
	}{
		{"cache-show.txt", []string{"show", "web.example.org"}},
		{"cache-show.json", []string{"show", "web.example.org", "--output", "json"}},
		{"cache-flush.txt", []string{"flush", "web.example.org"}},
		{"cache-flush.json", []string{"flush", "--output", "json"}},
	} {
		node := &nodetest.Node{Controls: []*nodetest.Socket{aCache("/run/trackless/control.sock", 47)}}
		out, code, err := runCache(t, node, tc.args...)
		if err != nil || code != 0 {
			t.Fatalf("%v: status %d, error %v", tc.args, code, err)
		}
		testgolden.Compare(t, tc.golden, out)
		if strings.HasSuffix(tc.golden, ".json") {
			continue
		}
		// On a narrow terminal only records are wrapped.
		for line := range strings.Lines(out) {
			if len(line) > 80 && !strings.Contains(line, " IN ") {
				t.Errorf("%d columns: %s", len(line), line)
			}
		}
	}
}

func TestCache(t *testing.T) {
	refusing := aCache("/run/trackless/control-2.sock", 2)
	refusing.SwitchErr = &control.RefusedError{Reason: "the Corefile in force has no cache directive"}
	broken := aCache("/run/trackless/control-3.sock", 3)
	broken.SwitchErr = errors.New("control socket: connection reset")
	empty := nodetest.NewSocket("/run/trackless/control-4.sock", 4, "trackless-d")
	hung := nodetest.NewSocket("/run/trackless/control-5.sock", 5, "trackless-e")
	hung.StatusErr = context.DeadlineExceeded
	mute := iptables.Instance{Table: "trackless-mute", Owner: owner.Owner{PID: 6, LocalPID: 6, Life: owner.Alive}}
	dead := iptables.Instance{Table: "trackless-dead", Owner: owner.Owner{PID: 7, Life: owner.Dead}}
	first := aCache("/run/trackless/control.sock", 1)
	golden := testgolden.NewRows(t, "errors-cache.golden")
	for _, tc := range []struct {
		name    string
		args    []string
		sockets []*nodetest.Socket
		tables  []iptables.Instance
		code    int
		out     []string
		asked   string // of the first
	}{
		{name: "type", args: []string{"show", "www.example.org", "aaaa"}, sockets: []*nodetest.Socket{first}, asked: "show www.example.org aaaa"},
		{name: "nothing cached", args: []string{"show", "www.example.org", "MX"}, sockets: []*nodetest.Socket{empty}, out: []string{"nothing is cached for www.example.org MX\n"}, asked: "show www.example.org MX"},
		{name: "name", args: []string{"flush", "www.example.org"}, sockets: []*nodetest.Socket{first}, asked: `flush name "www.example.org" zone ""`},
		{name: "zone", args: []string{"flush", "--zone", "example.org"}, sockets: []*nodetest.Socket{first}, asked: `flush name "" zone "example.org"`},
		{name: "everything", args: []string{"flush"}, sockets: []*nodetest.Socket{first}, asked: `flush name "" zone ""`},
		{
			name: "several instances, of which one refuses and one breaks off", args: []string{"flush"}, sockets: []*nodetest.Socket{first, refusing, broken},
			code: cli.ExitFailure,
			out:  []string{"pid 1:\nremoved 4 answers\n"}, asked: `flush name "" zone ""`,
		},
		{name: "one of several", args: []string{"flush", "--pid", "1"}, sockets: []*nodetest.Socket{first, refusing, broken}, out: []string{"removed 4 answers\n"}, asked: `flush name "" zone ""`},
		{name: "the one with the socket", args: []string{"show", "a", "--socket", first.Name}, sockets: []*nodetest.Socket{refusing, first}, tables: []iptables.Instance{mute}},
		{
			name: "JSON of one that refuses", args: []string{"show", "a", "-o", "json"}, sockets: []*nodetest.Socket{refusing},
			code: cli.ExitFailure, out: []string{`"error": "pid 2 refused: the Corefile in force has no cache directive"`},
		},
		{name: "no instance", args: []string{"show", "a"}, code: cli.ExitFailure},
		{name: "no instance of the pid", args: []string{"flush", "--pid", "99"}, sockets: []*nodetest.Socket{first}, code: cli.ExitFailure},
		{name: "one without a socket", args: []string{"flush"}, sockets: []*nodetest.Socket{first}, tables: []iptables.Instance{mute, dead}, code: cli.ExitFailure, out: []string{"removed 4 answers"}},
		{name: "one that hangs", args: []string{"flush"}, sockets: []*nodetest.Socket{hung}, code: cli.ExitFailure},
		{name: "no name", args: []string{"show"}, code: cli.ExitUsage},
		{name: "no such type", args: []string{"show", "a", "NOPE"}, code: cli.ExitUsage},
		{name: "no domain name", args: []string{"show", "a..b"}, code: cli.ExitUsage},
		{name: "zone that is none", args: []string{"flush", "--zone", strings.Repeat("a", 64)}, code: cli.ExitUsage},
		{name: "two names", args: []string{"flush", "a", "b"}, code: cli.ExitUsage},
		{name: "name and zone", args: []string{"flush", "a", "--zone", "b"}, code: cli.ExitUsage},
		{name: "variable that is not set", args: []string{"flush", ""}, code: cli.ExitUsage},
		{name: "zone from a variable that is not set", args: []string{"flush", "--zone", ""}, code: cli.ExitUsage},
		{name: "output", args: []string{"flush", "-o", "xml"}, code: cli.ExitUsage},
		{name: "pid", args: []string{"flush", "--pid", "-1"}, code: cli.ExitUsage},
		{name: "timeout", args: []string{"flush", "--timeout", "0s"}, code: cli.ExitUsage},
		{name: "verb", args: []string{"drop"}, code: cli.ExitUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, s := range tc.sockets {
				s.Asked = ""
			}
			out, code, err := runCache(t, &nodetest.Node{Controls: tc.sockets, Tables: tc.tables}, tc.args...)
			if code != tc.code || (err != nil) != (tc.code != 0) {
				t.Errorf("status %d, error %v; want %d", code, err, tc.code)
			}
			if err != nil {
				golden.Compare(t, tc.name, err.Error())
			}
			for _, want := range tc.out {
				if !strings.Contains(out, want) {
					t.Errorf("%q is missing in\n%s", want, out)
				}
			}
			if tc.asked != "" && tc.sockets[0].Asked != tc.asked {
				t.Errorf("it was asked to %s, want %s", tc.sockets[0].Asked, tc.asked)
			}
			if tc.code == cli.ExitUsage && out != "" {
				t.Errorf("a wrong command line wrote\n%s", out)
			}
		})
	}
}

func TestCacheCompletion(t *testing.T) {
	node := &nodetest.Node{Controls: []*nodetest.Socket{aCache("/run/trackless/control.sock", 4711)}}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{""}, "flush\t"}, {[]string{"show", "a", ""}, "AAAA\n"}, {[]string{"show", ""}, ":4"}, {[]string{"flush", "--pid", ""}, "4711"},
		{[]string{"flush", "--output", ""}, "json"}, {[]string{"flush", "--zone", ""}, ":4"},
	} {
		out, _, err := runCache(t, node, append([]string{"__complete"}, tc.args...)...)
		if err != nil || !strings.Contains(out, tc.want) {
			t.Errorf("%v: %v, %q is missing in\n%s", tc.args, err, tc.want, out)
		}
	}
}
