//go:build privileged

package main

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/iptables/owner"
)

// What plan prints is what nft reads, and it makes the same of it. For the
// format of iptables-save, package binaries proves that.
func TestThePlanIsReadByNFT(t *testing.T) {
	testns.Program(t, "nft")
	testns.Enter(t)
	out, _, err := runPlan(t, "plan", "-conf", corefile(t, planCorefile))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(out)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s\n%s", err, said, out)
	}
	_, table, _ := strings.Cut(out, "random id of the instance:\n")
	if diff := cmp.Diff(table, testns.Run(t, "nft", "list", "table", "inet", owner.TablePrefix+"plan")); diff != "" {
		t.Errorf("the table that nft makes of the plan differs (-plan +nft):\n%s", diff)
	}
}
