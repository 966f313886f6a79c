//go:build privileged

package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/lab"
)

// Whatever the listener is bound to, it is attached, queries leave no entry, and the
// accounts and doctor know of them.
func TestListenersWithoutAnAddress(t *testing.T) {
	for _, tc := range []struct{ name, bind string }{
		{"without bind", ""},
		{"bind to all of both families", "bind ::"},
		{"bind to the link before it has addresses", "bind nodelocaldns"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			node := newNode(t)
			run(t, node.Namespace, "ip", "link", "add", "nodelocaldns", "type", "bridge")
			var addrs []string
			for _, a := range listenAddresses(node) {
				addrs = append(addrs, a.String())
			}
			text := corefile("notrack "+strings.Join(addrs, " ")+" {\nlease 5s\n}", "", listenAddresses(node)...)
			serve(t, node, strings.Replace(text, "bind "+strings.Join(addrs, " "), tc.bind, 1))
			answeredBy(t, node, lab.Trackless, listenAddresses(node)...)
			if entries := dnsEntries(t, node); len(entries) > 0 {
				t.Errorf("entries with a listen address:\n%s", strings.Join(entries, ""))
			}
			page := scrape(t, node)
			for _, class := range []string{`proto="udp"`, `proto="tcp"`} {
				if strings.Contains(page, fmt.Sprintf("coredns_notrack_entries_avoided{family=\"ipv4\",%s} 0\n", class)) {
					t.Errorf("no entry is avoided for %s:\n%s", class, page)
				}
			}
			if output, status := trackless(t, node, "doctor"); status != 0 || !strings.Contains(output, "keeps") {
				t.Errorf("doctor (%d):\n%s", status, output)
			}
			if status, out, errs := probed(t, node, "ready"); status != 0 {
				t.Errorf("ready: %d %s %s", status, out, errs)
			}
		})
	}
}
