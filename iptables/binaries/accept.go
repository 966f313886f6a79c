package binaries

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// ErrNoLegacy says that the binaries of iptables-legacy are not installed here.
var ErrNoLegacy = errors.New("iptables-legacy is not installed here: install it, use the image with the iptables binaries, or run the command on the node")

// lockWait is how many seconds the binaries wait for the xtables lock.
const lockWait = "5"

// AcceptLegacy puts a rule, given as the arguments of iptables, at the top of a chain of
// the legacy table filter in this network namespace. It moves the rule if the chain has
// it already. It fails with [ErrNoLegacy] without the binary.
func AcceptLegacy(ipv6 bool, chain string, rule []string) error {
	// This fails if the chain does not have the rule yet.
	_ = RemoveLegacy(ipv6, chain, rule)
	return runLegacy(ipv6, append([]string{"-I", chain}, rule...))
}

// RemoveLegacy deletes a rule from such a chain.
func RemoveLegacy(ipv6 bool, chain string, rule []string) error {
	return runLegacy(ipv6, append([]string{"-D", chain}, rule...))
}

func runLegacy(ipv6 bool, args []string) error {
	program := "iptables-legacy"
	if ipv6 {
		program = "ip6tables-legacy"
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return ErrNoLegacy
	}
	args = append([]string{"-w", lockWait, "-t", "filter"}, args...)
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
