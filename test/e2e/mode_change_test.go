//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/nodestate"
)

// nodeState is all that is configured on a node.
func nodeState(t *testing.T, node string) (state nodestate.State) {
	t.Helper()
	err := inside("k8-"+node, func() (err error) {
		state, err = nodestate.Read()
		return err
	})
	if err != nil {
		t.Fatalf("read the state of %s: %v", node, err)
	}
	return state
}

var failoverTable = regexp.MustCompile(`(?ms)^table inet trackless-failover \{.*?^\}\n`)

// withoutFailover leaves out the table that is to stay.
func withoutFailover(_, output string) string { return failoverTable.ReplaceAllString(output, "") }

// unordered sorts the rules of tables in which kube-proxy writes its own: it does so in
// another order each time that a Service changes.
func unordered(command, output string) string {
	if !strings.HasPrefix(command, "nft ") && !strings.HasPrefix(command, "iptables-nft-save") && !strings.HasPrefix(command, "ip6tables-nft-save") {
		return output
	}
	lines := strings.SplitAfter(output, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// asBefore fails unless a node is as it was, once kube-proxy has caught up.
func asBefore(t *testing.T, before map[string]nodestate.State, less func(command, output string) string) {
	t.Helper()
	for _, node := range nodes {
		eventually(t, node+" is as before", 2*time.Minute, func() error {
			now := nodeState(t, node)
			if less != nil {
				now = now.Without(less)
			}
			if diff := before[node].Without(unordered).Diff(now.Without(unordered)); diff != "" {
				return errors.New(diff)
			}
			return nil
		})
	}
}

// TestModeAndImageChange changes mode and image in one upgrade, uninstalls as
// docs/uninstall.md says, and finds the nodes as they were.
func TestModeAndImageChange(t *testing.T) {
	nextImage(t)
	t.Cleanup(func() { withoutRules(t) })
	before := map[string]nodestate.State{}
	for _, node := range nodes {
		eventually(t, "kube-proxy of "+node+" has forgotten the Services of tests before", time.Minute, func() error {
			for _, save := range []string{"nft list ruleset", "iptables-save"} {
				if out := lab.inNode(t, node, strings.Fields(save)...); strings.Contains(out, "kube-dns-upstream") || strings.Contains(out, "trackless") {
					return fmt.Errorf("%s has them", save)
				}
			}
			return nil
		})
		before[node] = nodeState(t, node)
	}

	uninstalled(t)
	install(t, "mode=both")
	serves(t, linkLocal, clusterDNS)
	for _, node := range nodes {
		if before[node].Diff(nodeState(t, node)) == "" {
			t.Fatalf("an installation changes nothing on %s", node)
		}
	}

	install(t, "mode=cluster-ip,image.tag="+nextTag)
	serves(t, clusterDNS)
	resolves(t, linkLocal) // pods that ask there still, by the failover table
	for _, node := range nodes {
		if addrs := lab.inNode(t, node, "ip", "-o", "address"); regexp.MustCompile(` ` + regexp.QuoteMeta(linkLocal) + `/`).MatchString(addrs) {
			t.Errorf("after the upgrade %s is still on %s:\n%s", linkLocal, node, addrs)
		}
	}

	if out, err := helm(t.Context(), "uninstall", "trackless", "--wait", "--timeout=2m"); err != nil {
		t.Fatalf("helm uninstall: %v\n%s", err, out)
	}
	asBefore(t, before, withoutFailover)
	resolves(t, linkLocal)

	for _, node := range nodes {
		lab.rulesRemove(t, node)
	}
	asBefore(t, before, nil)
}
