//go:build privileged

package integration

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
)

// newName is one that is in no cache.
func newName(n int) *dns.Msg {
	name := fmt.Sprintf("svc-7-%d-%d.lab.svc.cluster.local.", n/250, n%250)
	return new(dns.Msg).SetQuestion(name, dns.TypeA)
}

// misses asks for one new name after the other until it is ended, each with one
// attempt, and gives the errors then.
func misses(t *testing.T, node *lab.Node, addrs ...netip.Addr) (end func() (asked int, failed []error)) {
	t.Helper()
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		failed []error
		asked  int
	)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
			}
			query, addr, protocol := newName(asked), addrs[asked%len(addrs)], lab.UDP
			if asked%3 == 2 {
				protocol = lab.TCP
			}
			asked++
			wg.Go(func() {
				response, err := node.Pods[0].Query(t.Context(), protocol, addr, query)
				if err == nil && (response.Rcode != dns.RcodeSuccess || len(response.Answer) != 1) {
					err = fmt.Errorf("%s over %s: %s", addr, protocol, dns.RcodeToString[response.Rcode])
				}
				if err != nil {
					mu.Lock()
					defer mu.Unlock()
					failed = append(failed, err)
				}
			})
		}
	}()
	return func() (int, []error) {
		close(stop)
		<-done
		wg.Wait()
		return asked, failed
	}
}

// deleteUpstream takes the Service of misses away, and what the kernel knows of
// UDP flows to it, as kube-proxy does. TCP connections go on for as long as they
// are used.
func deleteUpstream(t *testing.T, node *lab.Node) {
	t.Helper()
	testns.Program(t, "conntrack")
	if err := node.KubeProxy.Apply(node.Services[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the flows to the upstream are forgotten", func() error {
		return node.Namespace.Do(func() error {
			out, err := exec.Command("conntrack", "-D", "-p", "udp", "--orig-dst", lab.UpstreamDNS4.String()).CombinedOutput()
			if err != nil && !strings.Contains(string(out), "0 flow entries") { // which is an error to it
				return fmt.Errorf("%w\n%s", err, out) // such as for one that ends meanwhile
			}
			return nil
		})
	})
}

// The Service that misses go to is deleted, by mistake or by an uninstall: pods
// are answered all the while, by kube-dns as soon as our upstream is gone, and by
// us again when there is one.
func TestTheUpstreamServiceGoes(t *testing.T) {
	both := []netip.Addr{lab.LinkLocalDNS4, lab.ClusterDNS4}
	forward := "forward . " + lab.UpstreamDNS4.String()
	for _, tc := range []struct {
		name, notrack, upstream string
		listen                  []netip.Addr
	}{
		{name: "forward", notrack: steady, upstream: forward, listen: both},
		{name: "forward over TCP", notrack: steady, upstream: forward + " {\n        force_tcp\n    }", listen: both},
		{name: "backend iptables", notrack: "notrack {\n        backend iptables\n    }", upstream: forward, listen: both},
		{
			name: "upstream", notrack: steady, listen: both,
			upstream: "upstream service kube-system/kube-dns-upstream {\n        force_tcp\n        fallback " + lab.UpstreamDNS4.String() + "\n    }",
		},
		{
			name: "link-local alone, with failover to kube-dns", upstream: forward, listen: []netip.Addr{lab.LinkLocalDNS4},
			notrack: notrackWith("failover " + lab.ClusterDNS4.String()),
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			node := newNode(t)
			server := serve(t, node, strings.Replace(corefile(tc.notrack, "", tc.listen...), forward, tc.upstream, 1))
			t.Cleanup(func() {
				if t.Failed() {
					t.Log(server.Output())
				}
			})
			answeredBy(t, node, lab.Trackless, tc.listen...)

			end := misses(t, node, tc.listen...)
			time.Sleep(500 * time.Millisecond) // some before it
			deleteUpstream(t, node)
			answeredBy(t, node, lab.KubeDNS, tc.listen...)
			if err := node.KubeProxy.Apply(node.Services...); err != nil {
				t.Fatal(err)
			}
			answeredBy(t, node, lab.Trackless, tc.listen...)
			asked, failed := end()
			// A machine that stands still for seconds loses some.
			if len(failed) > max(1, asked/100) {
				t.Errorf("%d of %d were lost, the first: %v", len(failed), asked, failed[0])
			}
			t.Logf("%d of %d were lost: %v", len(failed), asked, failed)
			for _, said := range []string{"the upstream Service 10.96.0.99 is gone from kube-proxy's rules", "to be attached again"} {
				if !strings.Contains(server.Output(), said) {
					t.Errorf("%q is not in the log", said)
				}
			}
		})
	}
}

// Where nobody else would answer, what is cached still is.
func TestTheUpstreamServiceGoesWithoutAnother(t *testing.T) {
	node := newNode(t)
	server := serve(t, node, corefile("notrack {\n        failover "+lab.UpstreamDNS4.String()+"\n    }", "", lab.LinkLocalDNS4))
	answeredBy(t, node, lab.Trackless, lab.LinkLocalDNS4)
	cached := newName(0)
	ask := func(query *dns.Msg) (*dns.Msg, error) {
		return node.Pods[0].Query(t.Context(), lab.UDP, lab.LinkLocalDNS4, query)
	}
	if _, err := ask(cached); err != nil {
		t.Fatal(err)
	}
	deleteUpstream(t, node)
	// By the end of a miss the rules have been looked at.
	if response, err := ask(newName(1)); err == nil && response.Rcode == dns.RcodeSuccess {
		t.Errorf("a miss is answered: %v", response)
	}
	response, err := ask(cached)
	if err != nil || len(response.Answer) != 1 {
		t.Errorf("what was cached is not answered: %v %v\n%s", response, err, server.Output())
	}
	if strings.Contains(server.Output(), "detached") {
		t.Errorf("queries were given back to nobody:\n%s", server.Output())
	}
}

// The Service of misses is there, and nobody who asks it as we do is answered: a
// firewall drops DNS over TCP to the pods of kube-dns. Pods are answered by kube-dns
// itself until it is gone.
func TestMissesThatFailAreGivenBack(t *testing.T) {
	both := []netip.Addr{lab.LinkLocalDNS4, lab.ClusterDNS4}
	forward := "forward . " + lab.UpstreamDNS4.String()
	node := newNode(t)
	text := corefile(steady, "", both...)
	server := serve(t, node, strings.Replace(text, forward, forward+" {\n        force_tcp\n    }", 1))
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(server.Output())
		}
	})
	n := 0
	answered := func(who lab.Responder) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s answers new names", who), func() error {
			for _, addr := range both {
				n++
				response, err := node.Pods[0].Query(t.Context(), lab.UDP, addr, newName(n))
				if err != nil {
					return err
				}
				if got := lab.Identify(response); response.Rcode != dns.RcodeSuccess || got != who {
					return fmt.Errorf("%s: %s by %s", addr, dns.RcodeToString[response.Rcode], got)
				}
			}
			return nil
		})
	}
	answered(lab.Trackless)
	run(t, node.Namespace, "nft", "add table inet fw; add chain inet fw o { type filter hook output priority 10; }; add rule inet fw o ip daddr "+lab.UpstreamDNS4.String()+" tcp dport 53 drop; add rule inet fw o ip daddr 10.0.0.0/8 ip daddr != { "+lab.ClusterDNS4.String()+" } tcp dport 53 drop")
	answered(lab.KubeDNS)
	run(t, node.Namespace, "nft", "delete table inet fw")
	answered(lab.Trackless)
	for _, said := range []string{"the upstreams do not answer misses, and the cluster's DNS answers", "to be attached again"} {
		if !strings.Contains(server.Output(), said) {
			t.Errorf("%q is not in the log", said)
		}
	}
}
