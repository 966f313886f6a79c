//go:build chaos

package chaos_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

const (
	cycles = 200

	// edge is how many of the first and of the last cycles are compared.
	edge = 20

	// deadEvery is how often a cycle ends with SIGKILL, so that the next start
	// finds what an unclean death leaves.
	deadEvery = 4

	metricsAddress = "127.0.0.1:9253"
	cycleTimeout   = 20 * time.Second
)

const attachedCorefile = `.:53 {
    bind 169.254.20.10 10.96.0.10 fd00:10:96::a
    notrack
    cache 30
    forward . 10.96.0.99
    prometheus 127.0.0.1:9253
}
`

// plainCorefile is served without listen addresses.
const plainCorefile = `.:53 {
    bind 127.0.0.1
    cache 30
    forward . 10.96.0.99
    prometheus 127.0.0.1:9253
}
`

// TestCycles starts and stops trackless two hundred times on one node and
// finds the node as it was.
func TestCycles(t *testing.T) {
	needNode(t)
	node := newNode(t)
	before := state(t, node)
	beforeDump := settled(t, node)

	var resident []int
	for i := range cycles {
		server, err := node.Serve(attachedCorefile)
		if err != nil {
			t.Fatal(err)
		}
		await(t, func(ctx context.Context) error { return server.AwaitAttached(ctx, metricsAddress) })
		resident = append(resident, residentKiB(t, server.PID()))
		if i%deadEvery == 0 {
			err = server.Kill()
		} else {
			err = server.Close()
		}
		if err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
	}

	result := &scene.Result{}
	beforeDump.Compare(dump(t, node), scene.ExceptionsStopped(), "after the cycles", result)
	for _, failure := range result.Failures {
		t.Errorf("%s", failure.Text)
	}
	awaitState(t, node, before)
	flat(t, "KiB resident when attached", resident)
}

// TestReloads starts and stops the contract two hundred times within one
// process, by reloading a Corefile with notrack and one without.
func TestReloads(t *testing.T) {
	needNode(t)
	node := newNode(t)
	server, err := node.Serve(plainCorefile)
	if err != nil {
		t.Fatal(err)
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	await(t, func(ctx context.Context) error {
		return server.AwaitAnswer(ctx, node.Namespace, lab.UDP, loopback, lab.Trackless)
	})
	before, beforeDump := state(t, node), settled(t, node)

	var resident, descriptors, goroutines []int
	for range cycles {
		if err := server.Reload(attachedCorefile); err != nil {
			t.Fatal(err)
		}
		await(t, func(ctx context.Context) error { return server.AwaitAttached(ctx, metricsAddress) })
		if err := server.Reload(plainCorefile); err != nil {
			t.Fatal(err)
		}
		await(t, func(ctx context.Context) error {
			return server.AwaitAnswer(ctx, node.Namespace, lab.UDP, loopback, lab.Trackless)
		})
		metrics, err := server.Metrics(t.Context(), metricsAddress)
		if err != nil {
			t.Fatal(err)
		}
		running, _ := metrics.Sum("go_goroutines")
		goroutines = append(goroutines, int(running))
		resident = append(resident, residentKiB(t, server.PID()))
		descriptors = append(descriptors, openDescriptors(t, server.PID()))
	}

	// The last reload may still be taking away what was attached.
	var result scene.Result
	for deadline := time.Now().Add(cycleTimeout); ; time.Sleep(50 * time.Millisecond) {
		result = scene.Result{}
		beforeDump.Compare(dump(t, node), scene.ExceptionsStopped(), "after the reloads", &result)
		if len(result.Failures) == 0 || time.Now().After(deadline) {
			break
		}
	}
	for _, failure := range result.Failures {
		t.Errorf("%s", failure.Text)
	}
	awaitState(t, node, before)
	flat(t, "KiB resident", resident)
	flat(t, "open descriptors", descriptors)
	flat(t, "goroutines", goroutines)
	if err := server.Close(); err != nil {
		t.Error(err)
	}
}

func newNode(t *testing.T) *lab.Node {
	t.Helper()
	path, err := programs.Product()
	if err != nil {
		t.Fatal(err)
	}
	node, err := lab.NewNode(t.Context(), lab.Options{Program: path, Pods: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Error(err)
		}
	})
	return node
}

func settled(t *testing.T, node *lab.Node) scene.Dump {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cycleTimeout)
	defer cancel()
	d, err := scene.TakeSettledDump(ctx, node.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func dump(t *testing.T, node *lab.Node) scene.Dump {
	t.Helper()
	d, err := scene.TakeDump(node.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// nodeState counts what processes leave in a network namespace besides its
// configuration.
type nodeState struct {
	UDP, TCP, Netlink, Raw int // sockets; those in TIME-WAIT are nobody's
	DNSEntries             int // with port 53 of a listen address
}

func state(t *testing.T, node *lab.Node) nodeState {
	t.Helper()
	var s nodeState
	err := node.Namespace.Do(func() error {
		for _, table := range []struct {
			file  string
			count *int
		}{{"udp", &s.UDP}, {"udp6", &s.UDP}, {"tcp", &s.TCP}, {"tcp6", &s.TCP}, {"netlink", &s.Netlink}, {"raw", &s.Raw}, {"raw6", &s.Raw}} {
			text, err := os.ReadFile("/proc/thread-self/net/" + table.file)
			if err != nil {
				return err
			}
			for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n")[1:] {
				const timeWait = "06" // net/tcp_states.h
				fields := strings.Fields(line)
				if strings.HasPrefix(table.file, "tcp") && fields[3] == timeWait {
					continue
				}
				*table.count++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := conntrack.Dial(&conntrack.Config{NetNS: node.Namespace.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	listen := append([]netip.Addr{lab.LinkLocalDNS4}, node.ClusterDNS()...)
	err = conn.Dump(conntrack.Filter{}, func(e *conntrack.Entry) error {
		if slices.Contains(listen, e.Original.Src) || slices.Contains(listen, e.Original.Dst) {
			s.DNSEntries++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// awaitState waits until the node has what it had before: what is stopped
// closes its sockets a moment after it was replaced.
func awaitState(t *testing.T, node *lab.Node, before nodeState) {
	t.Helper()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(cycleTimeout)
	for {
		now := state(t, node)
		if now == before {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline:
			t.Errorf("in the end the node has %+v, before it had %+v", now, before)
			return
		}
	}
}

func await(t *testing.T, ready func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cycleTimeout)
	defer cancel()
	if err := ready(ctx); err != nil {
		t.Fatal(err)
	}
}

// residentKiB reads VmRSS of proc_pid_status(5).
func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib
}

func openDescriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// flat fails unless the median of the last values is at most a tenth above
// that of the first.
func flat(t *testing.T, what string, values []int) {
	t.Helper()
	median := func(of []int) int {
		sorted := slices.Sorted(slices.Values(of))
		return sorted[len(sorted)/2]
	}
	first, last := median(values[:edge]), median(values[len(values)-edge:])
	t.Logf("%s: %d in the first cycles, %d in the last", what, first, last)
	if last > first+first/10 {
		t.Errorf("%s grew from %d in the first cycles to %d in the last", what, first, last)
	}
}
