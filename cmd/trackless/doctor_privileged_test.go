//go:build privileged

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/cmd/trackless/cli"
	"github.com/trackless-dns/trackless/cmd/trackless/node"
	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/nftables"
	"github.com/trackless-dns/trackless/node/advice"
	"github.com/trackless-dns/trackless/node/measure"
)

// hostRoot is this machine's root with a kernel log of its own: other tests may
// fill tables.
func hostRoot(t *testing.T, kmsg string) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"proc", "sys", "etc"} {
		if err := os.Symlink("/"+dir, filepath.Join(root, dir)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "dev/kmsg"), []byte(kmsg), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

// sick is a namespace with something wrong in it.
type sick struct {
	t  *testing.T
	ns *testns.Namespace
	c  *conntrack.Conn
}

func (s *sick) run(name string, args ...string) {
	s.t.Helper()
	var out []byte
	var err error
	s.ns.Do(func() { out, err = exec.Command(name, args...).CombinedOutput() })
	if err != nil {
		s.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// many makes n entries that differ in their source port.
func (s *sick) many(n int, p conntrack.Protocol, dst string, change ...func(*conntrack.Entry)) {
	s.t.Helper()
	for i := range n {
		e := flow(p, fmt.Sprintf("10.244.%d.11:%d", i/50000, 1024+i%50000), dst)
		for _, c := range change {
			c(e)
		}
		if err := s.c.Create(e); err != nil {
			s.t.Fatal(err)
		}
	}
}

const trackEverything = "add table inet track { chain c { type filter hook input priority 0; ct state established accept; }; }"

// dnsServer listens on 169.254.20.10:53 and answers whatever comes, and asks
// itself from n ports.
func (s *sick) dns(n int) {
	s.t.Helper()
	s.run("ip", "addr", "add", "169.254.20.10/32", "dev", "lo")
	s.dnsAt("169.254.20.10:53", n)
}

// dnsAt does so at any address of the namespace, and asks 169.254.20.10.
func (s *sick) dnsAt(listen string, n int) {
	s.t.Helper()
	s.ns.Do(func() {
		server, err := net.ListenPacket("udp", listen)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = server.Close() })
		go func() {
			b := make([]byte, 512)
			for {
				n, from, err := server.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = server.WriteTo(b[:n], from)
			}
		}()
		for range n {
			client, err := net.Dial("udp", "169.254.20.10:53")
			if err != nil {
				s.t.Fatal(err)
			}
			if _, err := client.Write([]byte("question")); err != nil {
				s.t.Fatal(err)
			}
			_ = client.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := client.Read(make([]byte, 512)); err != nil {
				s.t.Fatal(err)
			}
			_ = client.Close()
		}
	})
}

// repeat calls fn until the context ends.
func repeat(ctx context.Context, every time.Duration, fn func(i int)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			fn(i)
		}
	}
}

// Each finding that a namespace can have is provoked in one, and found by the
// program as it is.
func TestDoctorEndToEnd(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string // the id if empty
		id       string
		severity advice.Severity
		setup    func(*sick)
		during   func(ctx context.Context, s *sick)
		says     string
	}{
		{id: "inactive", severity: advice.Info, setup: func(*sick) {}, says: "loopback"},
		{id: "table-filling", severity: advice.Critical, setup: func(*sick) {}, during: func(ctx context.Context, s *sick) {
			for i := 0; i < 240_000 && ctx.Err() == nil; i++ {
				_ = s.c.Create(flow(conntrack.UDP, fmt.Sprintf("10.0.%d.1:%d", i/60_000, 1+i%60_000), "10.0.0.2:9"))
			}
		}, says: "a second"},
		{id: "insert-failed", severity: advice.Warning, setup: func(s *sick) { s.run("nft", trackEverything) }, during: func(ctx context.Context, s *sick) {
			var err error
			s.ns.Do(func() { err = s.race(ctx) })
			if err != nil {
				s.t.Error(err)
			}
		}, says: "insert_failed rose by"},
		{id: "dns-share", severity: advice.Info, setup: func(s *sick) { s.many(1100, conntrack.UDP, "10.96.0.10:53", replied) }, says: "100 % of the table is DNS"},
		{id: "idle-established", severity: advice.Info, setup: func(s *sick) {
			s.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_established=432000")
			s.many(1100, conntrack.TCP, "10.0.0.2:443", tcpState(conntrack.TCPEstablished), func(e *conntrack.Entry) { e.Timeout = 72 * time.Hour })
		}, says: "1,100 of 1,100 established connections idle over an hour, 1,100 over a day"},
		{id: "established-short", severity: advice.Warning, setup: func(s *sick) {
			s.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_established=600")
		}, says: "10m0s"},
		{id: "time-wait", severity: advice.Info, setup: func(s *sick) { s.many(1100, conntrack.TCP, "10.0.0.2:443", tcpState(conntrack.TCPTimeWait)) }, says: "TIME_WAIT"},
		{id: "udp-unreplied", severity: advice.Warning, setup: func(s *sick) { s.many(1100, conntrack.UDP, "192.0.2.1:1900") }, says: "10.244.0.11 (1,100)"},
		{id: "dead-dns-endpoint", severity: advice.Warning, setup: func(s *sick) {
			s.many(20, conntrack.UDP, "10.96.0.10:53", backend("10.244.0.53"), replied)
			for i := range 12 {
				if err := s.c.Create(flow(conntrack.UDP, fmt.Sprintf("10.244.3.3:%d", 2000+i), "10.96.0.10:53", backend("10.244.9.53"))); err != nil {
					s.t.Fatal(err)
				}
			}
		}, says: "10.244.9.53 behind 10.96.0.10"},
		{id: "notrack-missing", severity: advice.Warning, setup: func(s *sick) {
			s.run("nft", trackEverything)
			s.dns(5)
		}, says: "DNS to 169.254.20.10 on this node is tracked"},
		{id: "notrack-one-sided", severity: advice.Critical, setup: func(s *sick) {
			s.run("nft", trackEverything)
			s.run("nft", "add table inet half { chain o { type filter hook output priority -300; udp dport 53 notrack; }; chain p { type filter hook prerouting priority -300; udp dport 53 notrack; }; }")
			s.dns(5)
		}, says: "answers from 169.254.20.10 are tracked"},
		{name: "rules are missing, no traffic", id: "notrack-missing", severity: advice.Warning, setup: func(s *sick) {
			s.run("nft", trackEverything)
			s.dns(0)
		}, says: "no rule keeps DNS to 169.254.20.10 untracked"},
		{name: "rules are one-sided, no traffic", id: "notrack-one-sided", severity: advice.Critical, setup: func(s *sick) {
			s.run("nft", trackEverything)
			s.run("nft", "add table inet half { chain o { type filter hook output priority -300; udp dport 53 notrack; }; chain p { type filter hook prerouting priority -300; udp dport 53 notrack; }; }")
			s.dns(0)
		}, says: "none the answers"},
		{name: "rules untrack, a zone undoes it", id: "notrack-missing", severity: advice.Warning, setup: func(s *sick) {
			s.run("nft", trackEverything)
			s.run("nft", bothUntracked)
			s.run("nft", "add table inet zone { chain o { type filter hook output priority -299; udp dport 53 ct zone set 5; }; }")
			s.dns(1)
		}, during: func(ctx context.Context, s *sick) {
			s.ns.Do(func() {
				repeat(ctx, 50*time.Millisecond, func(int) {
					if c, err := net.Dial("udp", "169.254.20.10:53"); err == nil {
						_, _ = c.Write([]byte("question"))
						_ = c.Close()
					}
				})
			})
		}, says: "although rules untrack it"},
		{id: "datapath", severity: advice.Info, setup: func(s *sick) {
			s.run("ip", "link", "add", "cilium_host", "type", "veth", "peer", "name", "cilium_net")
		}, says: "link cilium_host"},
	} {
		t.Run(cmp.Or(test.name, test.id), func(t *testing.T) {
			t.Parallel()
			ns, path := nodeTable(t)
			c, err := conntrack.Dial(&conntrack.Config{NetNS: ns.FD()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			s := &sick{t, ns, c}
			test.setup(s)
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				if test.during != nil {
					test.during(ctx, s)
				}
			}()
			root := hostRoot(t, "")
			r, code := runDoctor(t, "--netns", path, "--root", root)
			if test.during != nil {
				// Too little may happen in a third of a second of a busy machine.
				for deadline := time.Now().Add(time.Minute); !has(r, test.id, test.severity, test.says) && time.Now().Before(deadline); {
					r, code = runDoctor(t, "--netns", path, "--root", root)
				}
			}
			stop()
			<-done
			checkFinding(t, r, code, test.id, test.severity, test.says)
		})
	}
}

// runDoctor asks nobody for names: the machine that the test runs on may have pods.
func runDoctor(t *testing.T, args ...string) (measure.Report, int) {
	t.Helper()
	out, errs, code := trackless(append([]string{"doctor", "-o", "json", "--metrics", "off", "--ask", "off", "--interval", "300ms"}, args...)...)
	var r measure.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("exit status %d: %v\n%s%s", code, err, out, errs)
	}
	if len(r.Missing) > 0 {
		t.Errorf("not seen: %v", r.Missing)
	}
	return r, code
}

// checkFinding checks one finding and that the exit status is that of the worst.
func checkFinding(t *testing.T, r measure.Report, code int, id string, severity advice.Severity, says string) {
	t.Helper()
	want := map[advice.Severity]int{advice.Info: 0, advice.Warning: node.ExitWarnings, advice.Critical: node.ExitCritical}[advice.Worst(r.Findings)]
	if code != want {
		t.Errorf("exit status %d, want %d", code, want)
	}
	if !has(r, id, severity, says) {
		t.Errorf("no %s with severity %s and %q in %+v", id, severity, says, r.Findings)
	}
}

func has(r measure.Report, id string, severity advice.Severity, says string) bool {
	return slices.ContainsFunc(r.Findings, func(f advice.Finding) bool {
		return f.ID == id && f.Severity == severity && strings.Contains(f.Title+strings.Join(f.Evidence, "\n"), says)
	})
}

// The table is filled to the machine's limit in a namespace of its own.
func TestDoctorOnAFullTable(t *testing.T) {
	if testing.Short() {
		t.Skip("fills tables: left out with -short")
	}
	limits, err := sysctl.ReadLimits("")
	if err != nil || limits.Max > 1<<19 {
		testns.Skip(t, "a limit of %d takes too long to reach (%v)", limits.Max, err)
	}
	ns, path := nodeTable(t)
	// To make room the kernel looks at a few entries only: with one in ten that
	// is not assured it finds one at times, and at times it drops the packet.
	n := 0
	var mu sync.Mutex
	fillTable(t, ns, int(limits.Max), func(e *conntrack.Entry) {
		mu.Lock()
		defer mu.Unlock()
		e.Status = conntrack.StatusSeenReply | conntrack.StatusAssured
		if n++; n%10 == 0 {
			e.Status = 0
		}
	})
	s := &sick{t: t, ns: ns}
	s.run("nft", trackEverything)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ns.Do(func() {
			repeat(ctx, time.Millisecond, func(int) {
				if c, err := net.Dial("udp", "127.0.0.1:9"); err == nil {
					_, _ = c.Write([]byte("x"))
					_ = c.Close()
				}
			})
		})
	}()
	want := map[string]string{"drop": "drop rose by", "early-drop": "early_drop rose by", "table-full": "100 % full"}
	root := hostRoot(t, "")
	var r measure.Report
	var code int
	for deadline, found := time.Now().Add(time.Minute), false; !found && time.Now().Before(deadline); {
		var out, errs string
		out, errs, code = trackless("doctor", "-o", "json", "--metrics", "off", "--ask", "off", "--interval", "1s", "--netns", path, "--root", root)
		r = measure.Report{}
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("%v\n%s%s", err, out, errs)
		}
		found = true
		for id, says := range want {
			found = found && has(r, id, advice.Critical, says)
		}
	}
	stop()
	<-done
	for id, says := range want {
		checkFinding(t, r, code, id, advice.Critical, says)
	}
}

func TestDoctorReadsTheKernelLog(t *testing.T) {
	t.Parallel()
	_, path := nodeTable(t)
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	var now float64
	if _, err := fmt.Sscan(string(uptime), &now); err != nil {
		t.Fatal(err)
	}
	kmsg := fmt.Sprintf("4,9,%d,-;nf_conntrack: nf_conntrack: table full, dropping packet\n", int64((now-1)*1e6))
	r, code := runDoctor(t, "--netns", path, "--root", hostRoot(t, kmsg))
	checkFinding(t, r, code, "kernel-log", advice.Critical, "1 messages")
}

func TestDoctorAsksTracklessWhatItSaves(t *testing.T) {
	t.Parallel()
	ns, path := nodeTable(t)
	s := &sick{t: t, ns: ns}
	s.run("nft", trackEverything)
	s.run("nft", bothUntracked)
	s.dns(3)
	ns.Do(func() {
		l, err := net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr("169.254.20.10"), 9253).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Read(make([]byte, 4096))
				_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ncoredns_notrack_entries_avoided{proto=\"udp\"} 4711\n"))
				_ = c.Close()
			}
		}()
	})
	out, errs, code := trackless("doctor", "--ask", "off", "--interval", "100ms", "--netns", path, "--root", hostRoot(t, ""))
	if code != 0 || !strings.Contains(out, "Trackless keeps 4,711 entries out of the table") {
		t.Errorf("exit status %d\n%s%s", code, out, errs)
	}
}

const bothUntracked = "add table inet both { chain o { type filter hook output priority -300; udp dport 53 notrack; udp sport 53 notrack; }; chain p { type filter hook prerouting priority -300; udp dport 53 notrack; udp sport 53 notrack; }; }"

// Entries outlive the rules that untrack their flow now: seconds after an
// installation they prove nothing.
func TestDoctorKnowsEntriesOlderThanTheRules(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		before []string
		legacy bool
	}{
		{"to the cache", nil, false},
		{"translated away from it", []string{"add table ip nat { chain o { type nat hook output priority -100; ip daddr 169.254.20.10 udp dport 53 dnat to 127.0.0.1:53; }; }"}, false},
		{"answers first", []string{"add table inet half { chain o { type filter hook output priority -300; udp dport 53 notrack; }; chain p { type filter hook prerouting priority -300; udp dport 53 notrack; }; }"}, false},
		{"rules of iptables-legacy", nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ns, path := nodeTable(t)
			s := &sick{t: t, ns: ns}
			s.run("nft", trackEverything)
			for _, rule := range test.before {
				s.run("nft", rule)
			}
			if len(test.before) > 0 && strings.Contains(test.before[0], "dnat") {
				s.dnsAt("127.0.0.1:53", 0)
			}
			s.dns(3)
			if test.legacy {
				for _, chain := range []string{"PREROUTING", "OUTPUT"} {
					for _, port := range []string{"--dport", "--sport"} {
						s.run("iptables-legacy", "-t", "raw", "-A", chain, "-p", "udp", port, "53", "-j", "CT", "--notrack")
					}
				}
			} else {
				s.run("nft", bothUntracked)
			}
			r, _ := runDoctor(t, "--netns", path, "--root", hostRoot(t, ""))
			for _, f := range r.Findings {
				if strings.HasPrefix(f.ID, "notrack-") {
					t.Errorf("%s: %s %v", f.ID, f.Title, f.Evidence)
				}
			}
		})
	}
}

// A Trackless that is attached leaves nothing to find; one that is detached is
// named, with or without traffic.
func TestDoctorKnowsTrackless(t *testing.T) {
	t.Parallel()
	ns, path := nodeTable(t)
	s := &sick{t: t, ns: ns}
	s.run("nft", trackEverything)
	s.dns(0)
	rules, err := nftables.New(nftables.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rules.Remove() })
	plan := iptables.Plan{Listen: []iptables.Endpoint{
		{Addr: netip.MustParseAddr("169.254.20.10"), Port: 53, Proto: iptables.UDP},
		{Addr: netip.MustParseAddr("169.254.20.10"), Port: 53, Proto: iptables.TCP},
	}}
	if err := rules.Install(iptables.Rules{Plan: plan.Normalize()}); err != nil {
		t.Fatal(err)
	}
	r, code := runDoctor(t, "--netns", path, "--root", hostRoot(t, ""))
	checkFinding(t, r, code, "notrack-missing", advice.Warning, "Trackless is detached from 169.254.20.10")

	if err := rules.Attach(); err != nil {
		t.Fatal(err)
	}
	r, code = runDoctor(t, "--netns", path, "--root", hostRoot(t, ""))
	// The machine that the test runs on may have a kube-proxy.
	r.Findings = slices.DeleteFunc(r.Findings, func(f advice.Finding) bool { return f.ID == "kube-proxy" })
	if code != 0 || len(r.Findings) != 0 {
		t.Errorf("attached: exit status %d, %+v", code, r.Findings)
	}
}

// A ruleset that was saved with our table in it cannot be loaded while we run;
// doctor names the file, and the command that it prints saves one that can.
func TestDoctorFindsASavedRuleset(t *testing.T) {
	t.Parallel()
	ns, path := nodeTable(t)
	s := &sick{t: t, ns: ns}
	rules, err := nftables.New(nftables.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rules.Remove() })
	plan := iptables.Plan{Listen: []iptables.Endpoint{{Addr: netip.MustParseAddr("169.254.20.10"), Port: 53, Proto: iptables.UDP}}}
	if err := rules.Install(iptables.Rules{Plan: plan.Normalize()}); err != nil {
		t.Fatal(err)
	}
	s.run("nft", "add table ip other { chain c { type filter hook input priority 0; }; }")
	s.run("nft", "add table inet another")
	root := hostRoot(t, "")
	if err := os.Remove(filepath.Join(root, "etc")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "etc/nftables.conf")

	s.run("sh", "-c", "nft list ruleset > "+file)
	ns.Do(func() {
		if out, err := exec.Command("nft", "-f", file).CombinedOutput(); err == nil || !strings.Contains(string(out), "not permitted") {
			t.Errorf("nft -f of the whole ruleset: %v\n%s", err, out)
		}
	})
	r, code := runDoctor(t, "--netns", path, "--root", root)
	checkFinding(t, r, code, "saved-ruleset", advice.Warning, "/etc/nftables.conf:")

	s.run("sh", "-c", "{ echo flush ruleset; "+advice.SaveOthers+"; } > "+file)
	s.run("nft", "-f", file)
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), "table ip other") || !strings.Contains(string(b), "table inet another") {
		t.Errorf("saved %v\n%s", err, b)
	}
	if r, _ := runDoctor(t, "--netns", path, "--root", root); has(r, "saved-ruleset", advice.Warning, "") {
		t.Errorf("%+v", r.Findings)
	}
}

func TestDoctorCannotLook(t *testing.T) {
	t.Parallel()
	ns, _ := nodeTable(t)
	unreadable := hostRoot(t, "")
	if err := os.Remove(filepath.Join(unreadable, "dev/kmsg")); err != nil {
		t.Fatal(err)
	}
	missing := t.TempDir()
	golden := testgolden.NewRows(t, "refused-doctor.golden", unreadable, "UNREADABLE", missing, "MISSING")
	for _, test := range []struct {
		name string
		args []string
		out  string
	}{
		{"no connection tracking", []string{"--root", missing}, ""},
		{"wrong flag", []string{"--color"}, ""},
		{"argument", []string{"please"}, ""},
		{"wrong output", []string{"-o", "xml"}, ""},
		{"no interval", []string{"--interval", "0s"}, ""},
		{"no such namespace", []string{"--netns", "nowhere"}, ""},
		{"no privilege", []string{"--interval", "10ms", "--root", unreadable}, "needs CAP_NET_ADMIN"},
		{"no kernel log", []string{"--interval", "10ms", "--root", unreadable}, "kernel.dmesg_restrict"},
	} {
		t.Run(test.name, func(t *testing.T) {
			withoutNetAdmin(t, ns, func() {
				out, errs, code := trackless(append([]string{"doctor", "--metrics", "off"}, test.args...)...)
				if code != cli.ExitCannotMeasure || !strings.Contains(strings.Join(strings.Fields(out), " "), test.out) {
					t.Errorf("exit status %d, want %d\n%s%s", code, cli.ExitCannotMeasure, out, errs)
				}
				golden.Compare(t, test.name, errs)
			})
		})
	}
}
