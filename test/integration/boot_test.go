//go:build privileged

package integration

import (
	"cmp"
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testcert"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
	"github.com/trackless-dns/trackless/lab/kubeproxy"
)

// bootFor is how long the upstream is away, TRACKLESS_BOOT or so long that a dial is
// pending and its first SYN has been repeated; bootRate is the number of queries a
// second, TRACKLESS_BOOT_RATE.
var (
	bootFor, _  = time.ParseDuration(cmp.Or(os.Getenv("TRACKLESS_BOOT"), "2s"))
	bootRate, _ = strconv.Atoi(cmp.Or(os.Getenv("TRACKLESS_BOOT_RATE"), "40"))
)

// maxLogLines is how many lines of log may be written in a second.
const maxLogLines = 10

// TestBoot: kube-proxy's rules, or the pod network, come late. When they are there, a
// second later nobody is told any more that the upstream fails, and those who asked
// just before, and were not told so yet, have their answers. The log stays readable.
func TestBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("the program under test is not the race detector's")
	}
	t.Parallel()
	forward := "forward . " + lab.UpstreamDNS4.String()
	service := "upstream service kube-system/kube-dns-upstream {\n fallback " + lab.UpstreamDNS4.String() + "\n "
	for _, tc := range []struct {
		name, upstream string
		away           func(*testing.T, *lab.Node) (back func())
		direct         netip.Addr
		refused        bool // those who ask before are told at once
	}{
		{name: "forward over TCP, as in node-cache's Corefile", upstream: forward + " {\n force_tcp\n }", away: servicesVanish, direct: lab.UpstreamDNS4},
		{name: "forward", upstream: forward, away: servicesVanish, direct: lab.UpstreamDNS4},
		{name: "forward, refused", upstream: forward + " {\n force_tcp\n }", away: servicesRefuse, direct: lab.UpstreamDNS4, refused: true},
		{name: "forward over TLS", upstream: "forward . tls://" + dnsPod.String() + " {\n tls_servername dns.test\n tls {$CA}\n }", away: podsVanish, direct: dnsPod},
		{name: "upstream service", upstream: service + "}", away: servicesVanish, direct: lab.UpstreamDNS4},
		{name: "upstream service over TCP", upstream: service + "force_tcp\n }", away: servicesVanish, direct: lab.UpstreamDNS4},
		{name: "upstream endpoints", upstream: "upstream endpoints kube-system/kube-dns {\n force_tcp\n }", away: podsVanish, direct: dnsPod},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			back := tc.away(t, node)
			listen := []netip.Addr{lab.LinkLocalDNS4, lab.ClusterDNS4}
			text := strings.Replace(corefile(steady, "", listen...), forward, tc.upstream, 1)
			text = strings.Replace(text, "{$CA}", serveTLS(t, node, strings.Contains(text, "tls://")), 1)
			server := serveInCluster(t, node, text)
			eventually(t, "it is attached", func() error {
				if out := server.Output(); !strings.Contains(out, "] plugin/notrack: attached: DNS to") && !attachedAgain(out, listen...) {
					return errNotYet{out}
				}
				return nil
			})

			began := time.Now()
			var loads []*clients.Lookups
			for i, addr := range listen {
				l := &clients.Lookups{From: node.Pods[i].Namespace, Target: addr, Rate: bootRate / len(listen)}
				l.Start()
				loads = append(loads, l)
			}
			time.Sleep(bootFor)
			first := firstAnswer(t, node, tc.direct)
			back()
			at, late := first()
			time.Sleep(time.Until(at.Add(2 * time.Second)))
			var before, answered int
			for _, l := range loads {
				outcomes, err := l.Stop()
				if err != nil {
					t.Error(err)
				}
				for _, o := range outcomes {
					after := o.Ended.Sub(at)
					if o.Failed() && after > time.Second+late {
						t.Errorf("SERVFAIL %s after the first direct answer (%+v)", after, o)
					}
					told := o.Failed() && after < 0
					if ago := at.Sub(o.Sent); ago > 0 && ago < time.Second && !told {
						before++
						if o.Answered() && after < 2500*time.Millisecond+late {
							answered++
						}
					}
				}
			}
			if !tc.refused && 2*answered < before {
				t.Errorf("of %d who had asked within a second before and waited, %d have an answer", before, answered)
			}
			lines := slices.DeleteFunc(server.Lines(), func(t time.Time) bool { return t.Before(began) })
			for i := range lines {
				if i >= maxLogLines && lines[i].Sub(lines[i-maxLogLines]) < time.Second {
					t.Fatalf("more than %d lines of log in a second", maxLogLines)
				}
			}
			t.Logf("%d of %d who waited were answered; %d lines of log; the machine was late by %s", answered, before, len(lines), late)
		})
	}
}

// dnsPod is the address of kube-dns's pod.
var dnsPod = netip.MustParseAddr("10.244.0.53")

// servicesVanish takes kube-proxy's rules away: what is sent to a Service leaves by the
// default route, and nobody answers.
func servicesVanish(t *testing.T, node *lab.Node) (back func()) {
	t.Helper()
	if err := node.KubeProxy.Remove(); err != nil {
		t.Fatal(err)
	}
	return func() { applyServices(t, node, node.Services) }
}

// servicesRefuse takes the endpoints away: kube-proxy's rules reject what is sent.
func servicesRefuse(t *testing.T, node *lab.Node) (back func()) {
	t.Helper()
	services := slices.Clone(node.Services)
	for i := range services {
		services[i].Endpoints = nil
	}
	applyServices(t, node, services)
	return func() { applyServices(t, node, node.Services) }
}

func applyServices(t *testing.T, node *lab.Node, services []kubeproxy.Service) {
	t.Helper()
	if err := node.KubeProxy.Apply(services...); err != nil {
		t.Fatal(err)
	}
}

// podsVanish has what is sent to kube-dns's pod leave by the default route, as before
// the pod network is there.
func podsVanish(t *testing.T, node *lab.Node) (back func()) {
	t.Helper()
	run(t, node.Namespace, "ip", "route", "replace", dnsPod.String(), "via", "192.0.2.1")
	return func() { run(t, node.Namespace, "ip", "route", "replace", dnsPod.String(), "dev", node.DNSPod.HostLink) }
}

// firstAnswer asks the address every 50 ms until the returned function is called, which
// waits for the first answer. It tells also by how much this machine was late with
// that.
func firstAnswer(t *testing.T, node *lab.Node, addr netip.Addr) func() (at time.Time, late time.Duration) {
	t.Helper()
	const interval = 50 * time.Millisecond
	answer := make(chan time.Time, 1)
	stop := make(chan struct{})
	var late time.Duration
	var asking sync.WaitGroup
	asking.Go(func() {
		for due, i := time.Now(), 0; ; due, i = due.Add(interval), i+1 {
			select {
			case <-stop:
				return
			case <-time.After(time.Until(due)):
			}
			late = max(late, time.Since(due))
			due = time.Now()
			asking.Go(func() {
				if _, err := node.Namespace.Query(t.Context(), lab.UDP, addr, newName(i)); err == nil {
					select {
					case answer <- time.Now():
					default:
					}
				}
			})
		}
	})
	return func() (at time.Time, by time.Duration) {
		select {
		case at = <-answer:
			time.Sleep(time.Second)
		case <-time.After(patience):
			t.Error("no direct answer")
			at = time.Now()
		}
		close(stop)
		asking.Wait()
		return at, late
	}
}

// serveTLS serves DNS over TLS in kube-dns's pod and returns the file with the
// certificate.
func serveTLS(t *testing.T, node *lab.Node, wanted bool) string {
	t.Helper()
	if !wanted {
		return ""
	}
	authority := testcert.New(t, "boot")
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, authority.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: dnsPod.AsSlice()}}
		_ = w.WriteMsg(m) // the client may have gone
	})}
	if err := node.DNSPod.Do(func() error {
		listener, err := net.Listen("tcp", netip.AddrPortFrom(dnsPod, 853).String())
		if err != nil {
			return err
		}
		server.Listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{authority.KeyPair(t, "dns.test")}})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown() })
	return file
}
