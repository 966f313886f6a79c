//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// kernelHits is how many queries the kernel of a node has answered.
func kernelHits(t *testing.T, node string) (hits float64) {
	t.Helper()
	eventually(t, "metrics of "+node, 30*time.Second, func() error {
		page, err := lab.inClient(t.Context(), "n1", "get", fmt.Sprintf("http://172.31.77.1%s:9253/metrics", strings.TrimPrefix(node, "n")))
		if err != nil {
			return err
		}
		hits, err = sum(page, "coredns_fastpath_requests_total", "")
		return err
	})
	return hits
}

// sum adds up a metric over all series with the label.
func sum(page, metric, label string) (total float64, err error) {
	for line := range strings.Lines(page) {
		if series, ok := strings.CutPrefix(line, metric+"{"); ok && strings.Contains(series, label) {
			n, err := strconv.ParseFloat(strings.TrimSpace(series[strings.LastIndexByte(series, ' '):]), 64)
			if err != nil {
				return 0, err
			}
			total += n
		}
	}
	return total, nil
}

// answeredInKernel asks from the pod of a node until the kernel answers.
func answeredInKernel(t *testing.T, node, name string) {
	t.Helper()
	before := kernelHits(t, node)
	eventually(t, "the kernel answers the pod on "+node, 30*time.Second, func() error {
		if _, err := lab.ask(t.Context(), node, clusterDNS, "udp", name, name, name); err != nil {
			return err
		}
		if kernelHits(t, node) == before {
			return errors.New("no hit")
		}
		return nil
	})
}

const newPod = `apiVersion: v1
kind: Pod
metadata: {name: new-%[1]s, namespace: default}
spec:
  nodeName: %[1]s
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: "local.invalid/client:e2e", imagePullPolicy: Never, args: [ask, %[2]s]}]
`

// TestKernelHits has the kernels of both nodes answer, also the first query of a new pod,
// and before and after an update. Nothing of it is left after the end.
func TestKernelHits(t *testing.T) {
	const name = "hits.example.org" // its TTL is 30 s
	manifest := overlay(t, "cluster-ip")
	apply(t, manifest)
	rolledOut(t, "trackless")
	serves(t, clusterDNS)
	defer func() {
		if t.Failed() {
			describe(t)
		}
	}()
	for _, node := range nodes {
		forget(t, node, clusterDNS)
		answeredInKernel(t, node, name)
		if e := entries(t, node, clusterDNS); len(e) > 0 {
			t.Errorf("%s: %d entries for DNS, the first: %s", node, len(e), e[0])
		}
		shown := lab.must(t, "-n", namespace, "exec", tracklessPod(t, node), "--", "trackless", "rules", "show")
		t.Logf("%s:\n%s", node, shown)
		if !strings.Contains(shown, " tcx") && !strings.Contains(shown, " clsact") {
			t.Errorf("%s: rules show has no device:\n%s", node, shown)
		}
		if len(programs(t, node)) == 0 {
			t.Errorf("%s: no program is found at a device, so that none would be missed at the end", node)
		}
		firstQuery(t, node, name)
	}

	lab.must(t, "-n", namespace, "rollout", "restart", "daemonset/trackless")
	rolledOut(t, "trackless")
	for _, node := range nodes {
		answeredInKernel(t, node, name)
	}
	remove(t, manifest)
	nothingLeft(t)
	resolves(t, clusterDNS)
}

// firstQuery has a new pod ask once, which the kernel answers.
func firstQuery(t *testing.T, node, name string) {
	t.Helper()
	pod := fmt.Sprintf(newPod, node, name)
	t.Cleanup(func() {
		ctx, cancel := testContext()
		defer cancel()
		if out, err := lab.kubectlWith(ctx, pod, "delete", "-f", "-", "--ignore-not-found", "--now"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	// The counts of the last hits come within a second.
	time.Sleep(1500 * time.Millisecond)
	before := kernelHits(t, node)
	if out, err := lab.kubectlWith(t.Context(), pod, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lab.must(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/new-"+node, "--timeout=60s")
	eventually(t, "the kernel answers the first query of a new pod on "+node, 5*time.Second, func() error {
		if n := kernelHits(t, node); n != before+1 {
			return fmt.Errorf("%v hits", n-before)
		}
		return nil
	})
}

// programs names the devices of a node with a tcx program or a filter of clsact.
func programs(t *testing.T, node string) (found []string) {
	t.Helper()
	err := inside("k8-"+node, func() error {
		devices, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, d := range devices {
			at, err := link.QueryPrograms(link.QueryOptions{Target: d.Index, Attach: ebpf.AttachTCXIngress})
			if errors.Is(err, ebpf.ErrNotSupported) {
				break
			}
			if err == nil && len(at.Programs) > 0 {
				found = append(found, d.Name+" tcx")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(lab.inNode(t, node, "tc", "qdisc", "show")) {
		if strings.Contains(line, "clsact") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}
