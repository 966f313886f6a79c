//go:build kernels

package kernels

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/lab"
)

// hits is how many queries the kernel has answered.
func (n *node) hits(server *lab.Server) float64 {
	n.t.Helper()
	m, err := server.Metrics(n.t.Context(), metricsAddress)
	if err != nil {
		n.t.Fatal(err)
	}
	hits, _ := m.Sum("coredns_fastpath_requests_total")
	return hits
}

// answeredInKernel asks each address from a pod until the kernel answers.
func (n *node) answeredInKernel(server *lab.Server) {
	n.t.Helper()
	for _, addr := range n.listen {
		before := n.hits(server)
		eventually(n.t, fmt.Sprintf("the kernel answers at %s", addr), func() error {
			m, err := n.Pods[0].Query(n.t.Context(), lab.UDP, addr, new(dns.Msg).SetQuestion("svc-1-2-3.lab.svc.cluster.local.", dns.TypeA))
			switch {
			case err != nil:
				return err
			case len(m.Answer) == 0:
				return fmt.Errorf("no answer in %s", m)
			case n.hits(server) == before:
				return errors.New("no hit")
			}
			return nil
		})
	}
}

// Nothing stays attached, not after a process that was killed either: the next instance
// removes it.
func TestKernelHits(t *testing.T) {
	n := newNode(t, "auto")
	n.corefile = strings.Replace(n.corefile, "cache 30", "fastpath {\nkernel on\n}\ncache 30", 1)
	n.listen = n.ClusterDNS()

	server := n.serve()
	n.must("conntrack", "-F")
	n.answeredInKernel(server)
	if found := n.entries(); len(found) > 0 {
		t.Errorf("entries:\n%s", strings.Join(found, ""))
	}
	// tcx since Linux 6.6.
	shown := n.must("trackless", "rules", "show")
	if link := n.Pods[0].HostLink; !strings.Contains(shown, link+" tcx") && !strings.Contains(shown, link+" clsact") {
		t.Errorf("rules show has no %s:\n%s", link, shown)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	n.answeredBy(lab.KubeDNS)

	server = n.serve()
	n.answeredInKernel(server)
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	n.answeredBy(lab.KubeDNS)
	if qdiscs := n.must("tc", "qdisc", "show"); strings.Contains(qdiscs, "clsact") {
		t.Errorf("left behind: %s", qdiscs)
	}
}
