//go:build privileged

package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testgolden"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

// The page of a real run is what dashboards and alerts are made for: a name, a
// type, a help text or a label that changes is a change for everybody's.
func TestMetricsPage(t *testing.T) {
	node := newNode(t)
	serve(t, node, corefile(steady, "", listenAddresses(node)...))
	for _, addr := range node.ClusterDNS() {
		for _, protocol := range []lab.Protocol{lab.UDP, lab.TCP} {
			for range 2 {
				if who, err := ask(t, node.Pods[0].Namespace, addr, protocol); who != lab.Trackless || err != nil {
					t.Fatalf("%s %s: answered by %q, %v", protocol, addr, who, err)
				}
			}
		}
	}
	// Queries are counted after their answers have left, and the first walk is
	// made in the background.
	series := map[string]int{
		"coredns_dns_requests_total{":                 4,
		"coredns_dns_request_duration_seconds_count{": 2,
		"coredns_dns_request_size_bytes_count{":       4,
		"coredns_dns_response_size_bytes_count{":      4,
		"coredns_dns_responses_total{":                2,
		"coredns_conntrack_dns_entries{":              12,
	}
	var page string
	eventually(t, "all is counted", func() error {
		page = scrape(t, node)
		for name, want := range series {
			if n := strings.Count(page, "\n"+name); n != want {
				return fmt.Errorf("%d series %s…}, want %d:\n%s", n, name, want, page)
			}
		}
		return nil
	})

	t.Run("golden", func(t *testing.T) {
		testgolden.Compare(t, "metrics.txt", normalizePage(page))
	})
	t.Run("promtool", func(t *testing.T) {
		testns.Program(t, "promtool")
		check := exec.Command("promtool", "check", "metrics")
		check.Stdin = strings.NewReader(page)
		out, err := check.CombinedOutput()
		if err != nil && len(out) == 0 {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			// CoreDNS's own names are not ours to change.
			if strings.HasPrefix(line, "coredns_fairness_") || strings.HasPrefix(line, "coredns_notrack_") || strings.HasPrefix(line, "coredns_conntrack_") || !strings.HasPrefix(line, "coredns_") {
				t.Error(strings.TrimSpace(line))
			}
		}
	})
}

// What of DNS is in the table all the same.
func TestDNSEntriesByRole(t *testing.T) {
	node := newNode(t)
	for _, name := range []string{"udp_timeout", "udp_timeout_stream", "tcp_timeout_time_wait"} {
		setTimeout(t, node, name, "600") // none ends while we count
	}
	server := serve(t, node, corefile(steady, "", listenAddresses(node)...))
	pod := node.Pods[0].Namespace
	// A miss goes upstream; the upstream's own Service, asked by a pod, is a
	// bypass; from a node that asks us nothing is left.
	if who, err := ask(t, pod, lab.ClusterDNS4, lab.UDP); who != lab.Trackless || err != nil {
		t.Fatalf("answered by %q, %v", who, err)
	}
	bypass := map[string]netip.Addr{"ipv4": lab.UpstreamDNS4, "ipv6": lab.UpstreamDNS6}
	for _, addr := range bypass {
		for _, protocol := range []lab.Protocol{lab.UDP, lab.UDP, lab.UDP, lab.TCP} {
			if _, err := ask(t, pod, addr, protocol); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := map[string]float64{
		"client tcp ipv4": 0, "client udp ipv4": 0, "client tcp ipv6": 0, "client udp ipv6": 0,
		"bypass udp ipv4": 3, "bypass tcp ipv4": 1, "bypass udp ipv6": 3, "bypass tcp ipv6": 1,
		"upstream udp ipv4": 1, "upstream tcp ipv4": 0, "upstream udp ipv6": 0, "upstream tcp ipv6": 0,
	}
	eventually(t, "entries by role", func() error { // a walk every 10 s
		metrics, err := server.Metrics(t.Context(), metricsAddress)
		if err != nil {
			return err
		}
		got := map[string]float64{}
		for _, m := range metrics["coredns_conntrack_dns_entries"].GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			got[labels["role"]+" "+labels["proto"]+" "+labels["family"]] = m.GetGauge().GetValue()
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("(-want +got):\n%s\n%s", diff, run(t, node.Namespace, "conntrack", "-L"))
		}
		return nil
	})
}

// setTimeout changes a timeout of the node's connection tracking.
func setTimeout(t *testing.T, node *lab.Node, name, seconds string) {
	t.Helper()
	err := node.Namespace.Do(func() error {
		return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_"+name, []byte(seconds), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Where the kernel tracks nothing, nothing can be avoided.
func TestNothingTracked(t *testing.T) {
	testns.Root(t)
	node, err := lab.NewNode(t.Context(), lab.Options{Program: program, WithoutKubeProxy: true, WithoutKubeDNS: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	text := fmt.Sprintf(".:53 {\n bind %s\n notrack {\n failover off\n }\n whoami\n prometheus %s\n}\n", lab.ClusterDNS4, metricsAddress)
	server := serve(t, node, text)
	eventually(t, "it finds out that nothing is tracked", func() error {
		if page := scrape(t, node); !strings.Contains(page, `coredns_conntrack_tracking_info{active="false",reason="no rule of this network namespace uses connection tracking"} 1`) {
			return errNotYet{page}
		}
		return nil
	})
	query := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
	if _, err := node.Pods[0].Query(t.Context(), lab.UDP, lab.ClusterDNS4, query); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"coredns_notrack_entries_avoided", "coredns_notrack_flows_avoided_total"} {
		if n := metric(t, server, name); n != 0 {
			t.Errorf("%s %g, want 0", name, n)
		}
	}
}

// The ledger goes by the timeouts of this kernel, also when they change, and by the
// kernel's word on how TCP connections end.
func TestLedgerFollowsTheKernel(t *testing.T) {
	node := newNode(t)
	setTimeout(t, node, "tcp_timeout_close", "1")
	setTimeout(t, node, "udp_timeout", "600")
	server := serve(t, node, corefile(notrackWith("sync 1s"), "", listenAddresses(node)...))
	avoided := func(proto string) (n float64) {
		t.Helper()
		metrics, err := server.Metrics(t.Context(), metricsAddress)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range metrics["coredns_notrack_entries_avoided"].GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "proto" && l.GetValue() == proto {
					n += m.GetGauge().GetValue()
				}
			}
		}
		return n
	}
	becomes := func(proto string, want float64) {
		t.Helper()
		eventually(t, "entries over "+proto, func() error {
			if n := avoided(proto); n != want {
				return errNotYet{fmt.Sprintf("%g entries over %s are avoided, want %g", n, proto, want)}
			}
			return nil
		})
	}

	conn := dialTCP(t, node.Pods[0].Namespace, netip.AddrPortFrom(lab.ClusterDNS4, 53))
	dnsConn := &dns.Conn{Conn: conn}
	if err := dnsConn.WriteMsg(new(dns.Msg).SetQuestion("svc-1-2-3.lab.svc.cluster.local.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	if _, err := dnsConn.ReadMsg(); err != nil {
		t.Fatal(err)
	}
	becomes("tcp", 1)
	if err := errors.Join(conn.SetLinger(0), conn.Close()); err != nil {
		t.Fatal(err)
	}
	becomes("tcp", 0) // two minutes, had it not been reset

	if who, err := ask(t, node.Pods[0].Namespace, lab.ClusterDNS4, lab.UDP); who != lab.Trackless || err != nil {
		t.Fatalf("answered by %q, %v", who, err)
	}
	becomes("udp", 1)
	setTimeout(t, node, "udp_timeout", "1")
	eventually(t, "the new timeout is in force", func() error {
		before := avoided("udp") // with those that the old one keeps
		if _, err := ask(t, node.Pods[0].Namespace, lab.ClusterDNS6, lab.UDP); err != nil {
			return err
		}
		for asked := time.Now(); time.Since(asked) < 3*time.Second; time.Sleep(50 * time.Millisecond) {
			if avoided("udp") <= before {
				return nil
			}
		}
		return errNotYet{"entries stay"}
	})
}

func dialTCP(t *testing.T, from *lab.Namespace, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	var conn *net.TCPConn
	err := from.Do(func() (err error) {
		conn, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// scrape returns the page as it is.
func scrape(t *testing.T, node *lab.Node) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = node.Namespace.Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}}
	response, err := client.Get("http://" + metricsAddress + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

var (
	// Those of the Go runtime and of CoreDNS's other plugins are theirs.
	pageFamilies = regexp.MustCompile(`^(?:# (?:HELP|TYPE) )?coredns_(?:build_info|fairness|notrack|conntrack|cache|dns|nodecache|trackless)_?`)
	pageBucket   = regexp.MustCompile(`_bucket\{`)
	pageValue    = regexp.MustCompile(` [^ ]+$`)
	pageLabels   = regexp.MustCompile(`(goversion|revision|version|table)="[^"]*"`)
)

// normalizePage keeps the families that this project answers for, without what
// differs from run to run.
func normalizePage(page string) string {
	var lines []string
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		if !pageFamilies.MatchString(line) || pageBucket.MatchString(line) {
			continue
		}
		if !strings.HasPrefix(line, "#") {
			line = pageLabels.ReplaceAllString(pageValue.ReplaceAllString(line, " VALUE"), `$1="…"`)
		}
		lines = append(lines, line)
	}
	return strings.Join(slices.Compact(lines), "\n") + "\n"
}
