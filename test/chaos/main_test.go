//go:build chaos

package chaos_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/chaos"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// programs are built once for all tests.
var programs scene.Programs

func TestMain(m *testing.M) {
	directory, err := os.MkdirTemp("", "trackless-chaos-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs.Directory = directory
	status := m.Run()
	_ = os.RemoveAll(directory)
	os.Exit(status)
}

// needNode skips where no lab node can be built.
func needNode(t *testing.T) {
	t.Helper()
	testns.Root(t)
	for _, program := range []string{"nft", "ip", "iptables-nft-save", "iptables-legacy-save"} {
		testns.Program(t, program)
	}
	if !lab.HasIPv6() {
		testns.Skip(t, "IPv6")
	}
	path, err := programs.Product()
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Missing(lab.Options{Program: path}); err != nil {
		testns.Skip(t, err.Error())
	}
}

// TestChaos plays the faults.
func TestChaos(t *testing.T) {
	needNode(t)
	for _, c := range chaos.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			result := c.Run(t.Context(), &programs, false)
			if result.Skipped != "" {
				testns.Skip(t, result.Skipped)
			}
			result.WriteLine(t.Output())
			if !result.Passed {
				result.WriteFailures(t.Output())
				t.Fail()
			}
		})
	}
}

// TestSabotage plays the faults with what they test taken away.
func TestSabotage(t *testing.T) {
	needNode(t)
	for _, c := range chaos.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.RunSabotaged(t.Context(), &programs); err != nil {
				t.Error(err)
			}
		})
	}
}
