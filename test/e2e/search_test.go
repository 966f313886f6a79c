//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"
)

// TestServiceMadeAfterDenial: a Service that is made after its name was denied answers within the TTL
// of the denial, with cuts in use around it and with one pass.
func TestServiceMadeAfterDenial(t *testing.T) {
	const denial = 5 * time.Second // the TTL of kube-dns's denials
	uninstalled(t)
	for _, onePass := range []bool{false, true} {
		install(t, fmt.Sprintf("mode=cluster-ip,searchPath.onePass=%t", onePass))
		serves(t, clusterDNS)
		service := fmt.Sprintf("late-%t", onePass)
		name := service + ".default.svc.cluster.local."
		rcode := func(name string) string {
			answers, err := lab.ask(t.Context(), "n1", clusterDNS, "udp", name)
			if err != nil || len(answers) != 1 {
				t.Fatalf("%s: %v, %v", name, answers, err)
			}
			return answers[0].Rcode
		}
		// The cut at com.default.svc.cluster.local is beside the name, and must not cover it.
		for _, denied := range []string{"www.example.com.default.svc.cluster.local.", name} {
			if got := rcode(denied); got != "NXDOMAIN" {
				t.Fatalf("%s is %s before it is made", denied, got)
			}
		}
		// Not by create: its cleanup waits until the pods of Trackless are gone.
		lab.must(t, "create", "service", "externalname", service, "--external-name=kubernetes.default.svc.cluster.local")
		t.Cleanup(func() {
			ctx, cancel := testContext()
			defer cancel()
			if out, err := lab.kubectl(ctx, "delete", "service", service); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
		made := time.Now()
		eventually(t, name+" answers", time.Minute, func() error {
			if got := rcode(name); got != "NOERROR" {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
		// kube-dns hears of the Service from the API server, which takes a moment.
		if took := time.Since(made); took > denial+5*time.Second {
			t.Errorf("%s answered %s after it was made, want %s and a moment", name, took.Round(time.Millisecond), denial)
		}
	}
}
