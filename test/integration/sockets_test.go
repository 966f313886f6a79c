//go:build privileged

package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
)

// socketsOn has sockets of their own answer cached queries.
const socketsOn = "fastpath {\nsockets 2\n}"

const socketName = "svc-4-5-6.lab.svc.cluster.local."

// socketHits is how many queries were answered at such sockets.
func socketHits(t *testing.T, server *lab.Server, metrics string) (hits float64) {
	t.Helper()
	eventually(t, "metrics are read", func() error { // during a reload nobody listens there
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		m, err := server.Metrics(ctx, metrics)
		if err != nil {
			return err
		}
		hits, _ = m.Sum("coredns_fastpath_requests_total")
		return nil
	})
	return hits
}

// askAtSocket asks for the name once.
func askAtSocket(ctx context.Context, from *lab.Namespace, addr netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := from.Query(ctx, lab.UDP, addr, new(dns.Msg).SetQuestion(socketName, dns.TypeA))
	if err == nil && (m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0) {
		err = fmt.Errorf("the answer is %s", m)
	}
	return err
}

// atSockets waits until queries are answered at the sockets, each time.
func atSockets(t *testing.T, server *lab.Server, metrics string, from *lab.Namespace, addr netip.Addr) {
	t.Helper()
	eventually(t, fmt.Sprintf("queries of %s to %s are answered at sockets of our own", from.Name(), addr), func() error {
		if err := askAtSocket(t.Context(), from, addr); err != nil {
			return err
		}
		const n = 5
		before := socketHits(t, server, metrics)
		for range n {
			if err := askAtSocket(t.Context(), from, addr); err != nil {
				return err
			}
		}
		if got := socketHits(t, server, metrics) - before; got < n {
			return fmt.Errorf("%v of %d", got, n)
		}
		return nil
	})
}

// asking asks without a pause until stop is called, which returns how many queries were
// answered and the first that was not.
func asking(t *testing.T, from *lab.Namespace, addr netip.Addr, pause time.Duration) (stop func() (int, error)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var lost error
	answered := 0
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := askAtSocket(context.WithoutCancel(ctx), from, addr); err != nil {
				lost = errors.Join(lost, err)
			} else {
				answered++
			}
			time.Sleep(pause)
		}
	})
	return func() (int, error) {
		cancel()
		wg.Wait()
		return answered, lost
	}
}

// responds reports whether the one answers at the cluster's address.
func responds(t *testing.T, from *lab.Namespace, who lab.Responder) func() error {
	return func() error {
		got, err := ask(t, from, lab.ClusterDNS4, lab.UDP)
		if err == nil && got != who {
			err = fmt.Errorf("%s answers", got)
		}
		return err
	}
}

// reloaded loads a Corefile, and reports whether that was a success.
func reloaded(t *testing.T, server *lab.Server, text string) (ok bool) {
	t.Helper()
	ends := func() (done, failed int) {
		out := server.Output()
		return strings.Count(out, "Reloading complete"), strings.Count(out, "[ERROR] SIGUSR1")
	}
	done, failed := ends()
	if err := server.Reload(text); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Corefile is loaded", func() error {
		d, f := ends()
		if d == done && f == failed {
			return errors.New("it is not yet")
		}
		ok = d > done
		return nil
	})
	return ok
}

func TestSocketsAnswer(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	server := serve(t, node, corefile(steady, "fastpath", listenAddresses(node)...)) // on by default
	for _, pod := range node.Pods {
		for _, addr := range listenAddresses(node) {
			atSockets(t, server, metricsAddress, pod.Namespace, addr)
		}
	}
	if entries := dnsEntries(t, node); len(entries) > 0 {
		t.Errorf("entries with a listen address:\n%s", strings.Join(entries, ""))
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"[ERROR]", "[PANIC]", "panic:"} {
		if strings.Contains(server.Output(), line) {
			t.Errorf("a fault in the log:\n%s", server.Output())
		}
	}
}

// The kernel answers what sockets of ours have answered, too: most hits are theirs at first.
func TestSocketsAnnounceToTheKernel(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	server := serve(t, node, corefile(steady, "fastpath {\nkernel on\n}", node.ClusterDNS()...))
	pod := node.Pods[0].Namespace
	by := func(result string) (n float64) {
		for _, m := range scraped(t, server)["coredns_fastpath_requests_total"].GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "result" && l.GetValue() == result {
					n += m.GetCounter().GetValue()
				}
			}
		}
		return n
	}
	eventually(t, "both have answered", func() error {
		if err := askAtSocket(t.Context(), pod, lab.ClusterDNS4); err != nil {
			return err
		}
		if kernel, sockets := by("hit"), by("socket"); kernel == 0 || sockets == 0 {
			return fmt.Errorf("%v in the kernel, %v at sockets", kernel, sockets)
		}
		return nil
	})
	// A new name: the second query for it is answered at a socket, and later ones by the kernel.
	const name = "svc-7-8-9.lab.svc.cluster.local."
	kernel := by("hit") // it is counted once a second
	eventually(t, "the kernel has the answer that a socket gave", func() error {
		for range 5 {
			if _, err := lookup(t, pod, lab.ClusterDNS4, name); err != nil {
				return err
			}
		}
		if n := by("hit") - kernel; n < 20 {
			return fmt.Errorf("%v hits in the kernel, want 20", n)
		}
		return nil
	})
}

func TestSocketsFollowTheLease(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	text := corefile("notrack", socketsOn, node.ClusterDNS()...)
	server := serve(t, node, text)
	pod := node.Pods[0].Namespace
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"start", func() {}},
		{"detach", func() {
			if out, status := trackless(t, node, "rules", "detach"); status != 0 {
				t.Fatal(out)
			}
			eventually(t, "kube-dns answers", responds(t, pod, lab.KubeDNS))
			before := socketHits(t, server, metricsAddress)
			// The node itself still reaches the listener.
			for range 20 {
				_ = askAtSocket(t.Context(), node.Namespace, lab.ClusterDNS4)
			}
			if n := socketHits(t, server, metricsAddress); n != before {
				t.Errorf("%v queries were answered while detached", n-before)
			}
			if out, status := trackless(t, node, "rules", "attach"); status != 0 {
				t.Fatal(out)
			}
		}},
		{"reload", func() {
			if !reloaded(t, server, strings.ReplaceAll(text, "cache 30", "cache 29")) {
				t.Fatal("the reload has failed")
			}
		}},
		{"failed reload", func() {
			if reloaded(t, server, strings.ReplaceAll(text, "cache 30", "cache 30 {\nnosuch\n}")) {
				t.Error("the reload did not fail")
			}
		}},
		{"another number", func() {
			if !reloaded(t, server, strings.ReplaceAll(text, "sockets 2", "sockets 3")) {
				t.Fatal("the reload has failed")
			}
		}},
		{"off and on", func() {
			if !reloaded(t, server, strings.ReplaceAll(text, "sockets 2", "sockets off")) {
				t.Fatal("the reload has failed")
			}
			before := socketHits(t, server, metricsAddress)
			for range 20 {
				if err := askAtSocket(t.Context(), pod, lab.ClusterDNS4); err != nil {
					t.Error(err)
				}
			}
			if n := socketHits(t, server, metricsAddress); n != before {
				t.Errorf("%v queries were answered at sockets of our own", n-before)
			}
			if !reloaded(t, server, text) {
				t.Fatal("the reload has failed")
			}
		}},
		{"SIGSTOP", func() {
			stop(t, server)
			eventually(t, "kube-dns answers", responds(t, pod, lab.KubeDNS))
			if err := server.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.do()
			eventually(t, "it answers again", responds(t, pod, lab.Trackless))
			atSockets(t, server, metricsAddress, pod, lab.ClusterDNS4)
		})
	}
}

// descriptors is how many files a process has open.
func descriptors(t *testing.T, server *lab.Server) int {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", server.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func TestSocketsLastOverReloads(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	text := corefile(steady, socketsOn, node.ClusterDNS()...)
	server := serve(t, node, text)
	pod := node.Pods[0].Namespace
	atSockets(t, server, metricsAddress, pod, lab.ClusterDNS4)
	reload := func(n int) {
		if !reloaded(t, server, strings.ReplaceAll(text, "cache 30", fmt.Sprintf("cache %d", 30+n%2))) {
			t.Fatal("the reload has failed")
		}
	}
	reload(1)
	before := descriptors(t, server)
	stop := asking(t, pod, lab.ClusterDNS4, time.Millisecond)
	for n := range 10 {
		reload(n)
	}
	if n, lost := stop(); lost != nil {
		t.Errorf("lost, besides %d that were answered: %v", n, lost)
	}
	atSockets(t, server, metricsAddress, pod, lab.ClusterDNS4)
	eventually(t, "no socket is left", func() error {
		if n := descriptors(t, server); n > before+2 {
			return fmt.Errorf("%d files are open, %d before", n, before)
		}
		return nil
	})
}

// A second instance takes over, and no query is lost.
func TestSocketsAreHandedOver(t *testing.T) {
	t.Parallel()
	for _, way := range []struct {
		name string
		end  func(*lab.Server) error
		may  bool // lose queries
	}{
		{"stop", (*lab.Server).Close, false},
		{"kill", (*lab.Server).Kill, true},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			pod := node.Pods[0].Namespace
			var servers []*lab.Server
			for n := range 2 {
				server, err := node.Serve(strings.ReplaceAll(corefile(notrackWith("sync 1s"), socketsOn, node.ClusterDNS()...), metricsAddress, metricsOf(n)))
				if err != nil {
					t.Fatal(err)
				}
				awaitAttached(t, server, metricsOf(n))
				servers = append(servers, server)
			}
			stop := asking(t, pod, lab.ClusterDNS4, time.Millisecond)
			if err := way.end(servers[0]); err != nil {
				t.Fatal(err)
			}
			atSockets(t, servers[1], metricsOf(1), pod, lab.ClusterDNS4)
			n, lost := stop()
			if lost != nil && !way.may {
				t.Errorf("lost, besides %d that were answered: %v", n, lost)
			}
		})
	}
}
