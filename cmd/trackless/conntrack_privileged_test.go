//go:build privileged

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/internal/testns"
)

// nodeTable makes a namespace whose table has a few entries, and returns the
// path to it.
func nodeTable(t *testing.T, entries ...*conntrack.Entry) (*testns.Namespace, string) {
	t.Helper()
	ns := testns.New(t)
	c, err := conntrack.Dial(&conntrack.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for _, e := range entries {
		if err := c.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	return ns, fmt.Sprintf("/proc/self/fd/%d", ns.FD())
}

func flow(p conntrack.Protocol, src, dst string, change ...func(*conntrack.Entry)) *conntrack.Entry {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	e := &conntrack.Entry{Timeout: 10 * time.Minute}
	e.Original = conntrack.Tuple{Src: s.Addr(), Dst: d.Addr(), SrcPort: s.Port(), DstPort: d.Port(), Proto: p}
	e.Reply = e.Original.Mirror()
	for _, c := range change {
		c(e)
	}
	return e
}

func replied(e *conntrack.Entry) { e.Status |= conntrack.StatusSeenReply }

func tcpState(s conntrack.TCPState) func(*conntrack.Entry) {
	return func(e *conntrack.Entry) {
		e.TCP.State = s
		e.Status |= conntrack.StatusSeenReply | conntrack.StatusAssured
	}
}

func smallTable() []*conntrack.Entry {
	return []*conntrack.Entry{
		flow(conntrack.UDP, "10.244.0.11:4000", "10.96.0.10:53", backend("10.244.0.53"), replied),
		flow(conntrack.UDP, "[fd00::11]:4000", "[fd00::a]:53"),
		flow(conntrack.TCP, "10.244.0.12:5000", "192.0.2.80:443", tcpState(conntrack.TCPEstablished)),
		flow(conntrack.TCP, "10.244.0.12:5001", "192.0.2.80:443", tcpState(conntrack.TCPTimeWait)),
	}
}

func TestConntrackList(t *testing.T) {
	t.Parallel()
	_, ns := nodeTable(t, smallTable()...)
	for _, test := range []struct {
		name  string
		args  []string
		lines int
		has   string
	}{
		{"all", nil, 4, `"src":"fd00::11"`},
		{"dns", []string{"--dns"}, 2, `"dport":53`},
		{"state, lower case", []string{"--state", "time_wait,unreplied"}, 2, "TIME_WAIT"},
		{"status", []string{"--status", "ASSURED"}, 2, "tcp"},
		{"not status", []string{"--status", "!ASSURED,SEEN_REPLY"}, 1, "10.96.0.10"},
		{"unreplied", []string{"-u", "UNREPLIED"}, 1, "fd00::a"},
		{"network", []string{"--src", "10.244.0.11/24", "-p", "tcp"}, 2, "10.244.0.12"},
		{"service's server", []string{"--reply-src", "10.244.0.53", "--nat", "dnat"}, 1, "10.96.0.10"},
		{"no nat", []string{"--nat", "none"}, 3, "443"},
		{"ports", []string{"--sport", "4999-5000", "--dport", "53,443"}, 1, "5000"},
		{"family", []string{"--family", "6"}, 1, "ipv6"},
		{"zone and mark", []string{"--zone", "0", "--mark", "0/0xff"}, 4, "ipv4"},
		{"nothing", []string{"--dst", "198.51.100.0/24"}, 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, errs, code := trackless(append([]string{"conntrack", "list", "-o", "jsonl", "--netns", ns}, test.args...)...)
			if code != 0 || errs != "" {
				t.Fatalf("exit status %d, %s", code, errs)
			}
			if n := strings.Count(out, "\n"); n != test.lines || !strings.Contains(out, test.has) {
				t.Errorf("%d lines, want %d with %q:\n%s", n, test.lines, test.has, out)
			}
			for line := range strings.Lines(out) {
				if !json.Valid([]byte(line)) {
					t.Errorf("not JSON: %s", line)
				}
			}
		})
	}
}

// withoutNetAdmin runs fn on a thread inside ns that has lost CAP_NET_ADMIN.
func withoutNetAdmin(t *testing.T, ns *testns.Namespace, fn func()) {
	t.Helper()
	var err error
	ns.Do(func() {
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err = unix.Capget(&header, &data[0]); err != nil {
			return
		}
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err = unix.Capset(&header, &data[0]); err != nil {
			return
		}
		fn()
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestConntrackWithoutPrivilege(t *testing.T) {
	t.Parallel()
	ns, _ := nodeTable(t, smallTable()...)
	for _, test := range []struct {
		args  []string
		code  int
		out   string
		stats bool
		says  string
	}{
		{args: []string{"list"}, code: cli.ExitCannotMeasure, says: "needs CAP_NET_ADMIN"},
		{args: []string{"watch", "--duration", "1ms"}, code: cli.ExitCannotMeasure, says: "needs CAP_NET_ADMIN"},
		{args: []string{"stats"}, code: cli.ExitCannotMeasure, out: "4 of ", says: "needs CAP_NET_ADMIN"},
		{args: []string{"stats", "-o", "json"}, code: cli.ExitCannotMeasure, out: `"entries": 4`, says: "without it"},
		{args: []string{"limits"}, code: 0, out: "nf_conntrack_udp_timeout_stream"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			withoutNetAdmin(t, ns, func() {
				out, errs, code := trackless(append([]string{"conntrack"}, test.args...)...)
				if code != test.code || !strings.Contains(errs, test.says) || !strings.Contains(out, test.out) {
					t.Errorf("exit status %d, want %d\n%s%s", code, test.code, out, errs)
				}
				if test.args[0] == "list" && out != "" {
					t.Errorf("a document was begun: %q", out)
				}
			})
		})
	}
}

func TestConntrackStats(t *testing.T) {
	t.Parallel()
	_, ns := nodeTable(t, smallTable()...)
	out, errs, code := trackless("conntrack", "stats", "--netns", ns, "-o", "json", "--per-cpu")
	if code != 0 {
		t.Fatalf("exit status %d: %s", code, errs)
	}
	var r summary.Table
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Entries != 4 || r.Summary.Entries != 4 || r.Summary.DNS.Entries != 2 || r.Summary.NAT.DNAT != 1 ||
		len(r.PerCPU) == 0 || len(r.Counters) == 0 || r.Limit == 0 || r.Filtered {
		t.Errorf("%+v", r)
	}
	if len(r.Summary.Services) != 1 || r.Summary.Services[0].Address.String() != "10.96.0.10:53" {
		t.Errorf("services %+v", r.Summary.Services)
	}
	out, _, _ = trackless("conntrack", "stats", "--netns", ns, "--dns")
	for _, want := range []string{"4 of ", "2 entries read of those selected", "udp REPLIED", "10.96.0.10 -> 10.244.0.53", "insert_failed"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestConntrackWatch(t *testing.T) {
	t.Parallel()
	ns, path := nodeTable(t)
	for _, test := range []struct {
		name string
		args []string
		want []string
	}{
		// More than there are subtests, whose entries all come before one goes.
		{"conntrack lines", []string{"-o", "conntrack", "-c", "9"}, []string{"    [NEW] udp      17 ", "[DESTROY] udp      17 "}},
		{"filtered", []string{"-o", "jsonl", "--events", "destroy", "--dns", "-c", "1"}, []string{`"event":"DESTROY"`, `"dport":53`}},
		{"rate", []string{"--rate", "-o", "jsonl", "-c", "1"}, []string{`"new":`, `"destroy_dns":`, `"limit":`}},
		{"rate for people", []string{"--rate", "--duration", "1500ms"}, []string{"NEW DNS/s", "0.0 %"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			stop := make(chan struct{})
			done := make(chan struct{})
			go func() { // entries come and go until the watch has seen enough
				defer close(done)
				c, err := conntrack.Dial(&conntrack.Config{NetNS: ns.FD()})
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = c.Close() }()
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				for i := uint16(0); ; i++ {
					select {
					case <-stop:
						return
					case <-tick.C:
						e := flow(conntrack.UDP, "10.0.0.1:1000", "10.0.0.2:53")
						e.Original.SrcPort += i
						e.Reply = e.Original.Mirror()
						if c.Create(e) == nil { // another subtest may have made it
							_ = c.Delete(e)
						}
					}
				}
			}()
			out, errs, code := trackless(append([]string{"conntrack", "watch", "--netns", path}, test.args...)...)
			close(stop)
			<-done
			if code != 0 {
				t.Fatalf("exit status %d: %s", code, errs)
			}
			for _, want := range test.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
		})
	}
}
