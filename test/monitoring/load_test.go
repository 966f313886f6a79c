//go:build monitoring

package monitoring

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
)

// corefile has a cache that is small enough to evict, and short-lived enough to
// prefetch and to give stale answers within a test.
func corefile(node *lab.Node) string {
	var listen []string
	for _, a := range node.ClusterDNS() {
		listen = append(listen, a.String())
	}
	return fmt.Sprintf(`.:53 {
    errors
    bind %s
    notrack
    cache {
        success 1024 8
        denial 1024 8
        prefetch 2 1m 50%%
        serve_stale 1h verify 100ms
    }
    forward . %s {
        max_concurrent 20
    }
    prometheus %s
    podmetrics
}
`, strings.Join(listen, " "), lab.UpstreamDNS4, tracklessAddress)
}

// startLoad asks until the test ends: names that are cached, over UDP and TCP, from
// pods and the node; kube-dns past the cache; and ever new names.
func startLoad(t *testing.T, node *lab.Node) {
	t.Helper()
	var streams []clients.Stream
	for _, from := range []*lab.Namespace{node.Pods[0].Namespace, node.Pods[1].Namespace, node.Namespace} {
		for _, target := range node.ClusterDNS() {
			streams = append(streams,
				clients.Stream{Kind: clients.FreshPort, From: from, Target: target, Rate: 20},
				clients.Stream{Kind: clients.ShortTCP, From: from, Target: target, Rate: 4})
		}
	}
	// Half of what is asked of Trackless, so that there is something to alert about.
	streams = append(streams, clients.Stream{Kind: clients.FreshPort, From: node.Pods[0].Namespace, Target: lab.UpstreamDNS4, Rate: 160})
	running := clients.StartStreams(streams, time.Second)
	t.Cleanup(func() {
		if _, err := running.Stop(); err != nil {
			t.Error(err)
		}
	})
	askNewNames(t, node)
}

// askNewNames asks for names that no cache knows, half of which exist, each twice
// at once.
func askNewNames(t *testing.T, node *lab.Node) {
	ctx, stop := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	asking.Go(func() {
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		free := make(chan struct{}, 60)
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			name := fmt.Sprintf("svc-%d-%d-%d.lab.svc.cluster.local.", 200+n%2*100, n/250%250, n%250)
			for range 2 {
				select {
				case free <- struct{}{}:
				default:
					continue // kube-dns does not answer
				}
				asking.Go(func() {
					defer func() { <-free }()
					ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
					defer cancel()
					// What becomes of it is what the metrics say.
					_, _ = node.Pods[1].Query(ctx, lab.UDP, lab.ClusterDNS4, new(dns.Msg).SetQuestion(name, dns.TypeA))
				})
			}
		}
	})
	t.Cleanup(func() { stop(); asking.Wait() })
}

// without stops a process while something becomes visible.
func without(t *testing.T, process interface{ Signal(os.Signal) error }, holds func()) {
	t.Helper()
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := process.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}()
	holds()
}

// onNode runs a program in the node's namespace.
func onNode(t *testing.T, node *lab.Node, name string, args ...string) string {
	t.Helper()
	var out []byte
	err := node.Namespace.Do(func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// takeAddress deletes an address from the link it is on.
func takeAddress(t *testing.T, node *lab.Node, addr netip.Addr) {
	t.Helper()
	for line := range strings.Lines(onNode(t, node, "ip", "-o", "addr", "show", "to", addr.String())) {
		fields := strings.Fields(line)
		onNode(t, node, "ip", "addr", "del", fields[3], "dev", fields[1])
		return
	}
	t.Fatal(errors.New("no link has " + addr.String()))
}
