//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// faults are what happens to a pod on n1 while its clients ask the ClusterIP.
// None of them has anybody take the rules away: the kernel does, or the lease.
var faults = []struct {
	name   string
	happen func(t *testing.T)
	// lost says that queries may get lost until the rules are gone.
	lost bool
}{
	{
		name: "deleted by force",
		happen: func(t *testing.T) {
			pod := tracklessPod(t, "n1")
			lab.must(t, "-n", namespace, "delete", "pod", pod, "--force", "--grace-period=0")
		},
		lost: true,
	},
	{
		name: "killed",
		happen: func(t *testing.T) {
			kill(t, "n1", "trackless")
		},
		lost: true,
	},
	{
		// The surge pod never becomes ready, so the old one stays.
		name: "update to an image that does not start",
		happen: func(t *testing.T) {
			lab.must(t, "-n", namespace, "set", "image", "daemonset/trackless", "trackless=local.invalid/nothing:here")
			eventually(t, "a pod that cannot start", time.Minute, func() error { return stuck(t) })
		},
	},
	{
		// And when the old one goes as well, nobody is left but kube-dns.
		name: "no image that starts",
		happen: func(t *testing.T) {
			lab.must(t, "-n", namespace, "set", "image", "daemonset/trackless", "trackless=local.invalid/nothing:here")
			eventually(t, "a pod that cannot start", time.Minute, func() error { return stuck(t) })
			lab.must(t, "-n", namespace, "delete", "pod", tracklessPod(t, "n1"))
			if pid := lab.containerPID(t, "n1", "trackless"); pid != 0 {
				t.Errorf("process %d of trackless still runs on n1", pid)
			}
			tracked(t, "n1", clusterDNS)
		},
	},
	{
		name: "update",
		happen: func(t *testing.T) {
			lab.must(t, "-n", namespace, "rollout", "restart", "daemonset/trackless")
			rolledOut(t, "trackless")
		},
	},
}

// kill sends SIGKILL to the process of a container.
func kill(t *testing.T, node, container string) {
	t.Helper()
	pid := lab.containerPID(t, node, container)
	if pid == 0 {
		t.Fatalf("no container %s on %s", container, node)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func tracklessPod(t *testing.T, node string) string {
	t.Helper()
	pod, err := lab.pod(t.Context(), namespace, "app.kubernetes.io/name=trackless", node)
	if err != nil || pod == "" {
		t.Fatalf("no pod of trackless on %s: %v", node, err)
	}
	return pod
}

// stuck returns nil once there is a pod whose image cannot be had.
func stuck(t *testing.T) error {
	out, err := lab.kubectl(t.Context(), "-n", namespace, "get", "pods", "-l", "app.kubernetes.io/name=trackless",
		"-o", `go-template={{range .items}}{{range .status.containerStatuses}}{{with .state.waiting}}{{.reason}} {{end}}{{end}}{{end}}`)
	if err != nil {
		return err
	}
	if !strings.Contains(out, "ImagePull") {
		return fmt.Errorf("waiting for: %q", out)
	}
	return nil
}

// TestFaults breaks Trackless in turn, and pods must not see more of it than
// the moment until the rules are gone.
func TestFaults(t *testing.T) {
	manifest := overlay(t, "cluster-ip")
	apply(t, manifest)
	rolledOut(t, "trackless")
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			untracked(t, "n1", clusterDNS)
			unbroken(t, clusterDNS, fault.lost, fault.happen)
			// Whatever it was, the manifest puts it right.
			if out, err := lab.kubectlWith(t.Context(), manifest, "apply", "-f", "-"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			rolledOut(t, "trackless")
			untracked(t, "n1", clusterDNS)
		})
	}
	t.Run("uninstall", func(t *testing.T) {
		unbroken(t, clusterDNS, false, func(t *testing.T) { remove(t, manifest) })
		nothingLeft(t)
		tracked(t, "n1", clusterDNS)
	})
}

// maxGap is for how long a pod may get no answer. The rules are gone within
// milliseconds of a death, and with the lease after 1.5 s at most; the rest is
// for a machine that is busy with something else.
const maxGap = 4 * time.Second

// maxLost is the part of the queries that may get lost where nothing should:
// whether it is really nothing the chaos run says (test/chaos), which has the
// machine for itself. Here a whole cluster starts and stops beside the load.
const maxLost = 0.005

// unbroken has something happen while pods on n1 ask cached and new names.
func unbroken(t *testing.T, server string, lost bool, happen func(*testing.T)) {
	t.Helper()
	loads := map[string]func() load{}
	for _, l := range []struct{ proto, name string }{
		{"udp", "kubernetes.default.svc.cluster.local"},
		{"udp", "*.load.example.org"},
		{"tcp", "kubernetes.default.svc.cluster.local"},
	} {
		loads[l.proto+" "+l.name] = lab.startLoad(t, "n1", "-server", server, "-proto", l.proto, "-name", l.name, "-every", "10ms")
	}
	time.Sleep(time.Second) // some queries before it
	happen(t)
	time.Sleep(3 * time.Second) // longer than the lease
	for what, result := range loads {
		r := result()
		t.Logf("%s: %d asked, %d lost, %d failed, longest gap %d ms %v", what, r.Sent, r.Lost, r.Failed, r.GapMS, r.Errors)
		gap := time.Duration(r.GapMS) * time.Millisecond
		switch {
		case gap > maxGap:
			t.Errorf("%s: no answer for %s, want %s at most", what, gap, maxGap)
		case !lost && float64(r.Lost+r.Failed) > max(1, maxLost*float64(r.Sent)):
			t.Errorf("%s: of %d queries %d were lost and %d failed: %v", what, r.Sent, r.Lost, r.Failed, r.Errors)
		}
	}
}
