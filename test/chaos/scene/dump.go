package scene

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/internal/nodestate"
	"github.com/trackless-dns/trackless/lab"
)

// A Dump is the configuration of a node as the usual programs show it.
type Dump nodestate.State

// TakeDump reads the configuration of the namespace.
func TakeDump(ns *lab.Namespace) (dump Dump, err error) {
	err = ns.Do(func() error {
		state, err := nodestate.Read()
		dump = Dump(state)
		return err
	})
	return dump, err
}

// unsettled is what `ip address` shows of a link whose carrier, or of an
// address whose uniqueness, the kernel has not yet made up its mind about.
var unsettled = regexp.MustCompile(`@\S+ .* state (UNKNOWN|DOWN|LOWERLAYERDOWN) | tentative `)

// TakeSettledDump reads the configuration of a new namespace once the kernel
// has settled the state of its links, which takes it up to a second: until then
// addresses and routes still come.
func TakeSettledDump(ctx context.Context, ns *lab.Namespace) (Dump, error) {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	var last Dump
	for {
		dump, err := TakeDump(ns)
		if err != nil {
			return nil, err
		}
		if maps.Equal(dump, last) && !unsettled.MatchString(dump["ip address show"]) {
			return dump, nil
		}
		last = dump
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the links of %s to settle: %w; the last:\n%s",
				ns.Name(), context.Cause(ctx), dump["ip address show"])
		}
	}
}

// An Exception is something that may be there afterwards and was not before.
type Exception struct {
	Name string

	// remove takes it out of the output of a command.
	remove func(command, output string) string
}

// The exceptions, one by one.
var (
	// exceptFailover is the standing table for link-local listen addresses,
	// which `trackless rules remove` takes away.
	exceptFailover = Exception{"the failover table for link-local addresses", func(command, output string) string {
		if command != "nft list ruleset" {
			return output
		}
		return removeTables(output, failoverTable)
	}}

	// exceptAccept are the rules that let untracked DNS through filter chains
	// which would drop it, which do nothing without NOTRACK.
	exceptAccept = Exception{"tagged accept rules for untracked DNS in filter chains that would drop it", func(_, output string) string {
		return removeLines(output, func(line string) bool {
			return strings.Contains(line, "trackless") && strings.Contains(strings.ToLower(line), "accept")
		})
	}}

	// exceptAddresses are the listen addresses, and the link if it was
	// trackless that made it, after an unclean death.
	exceptAddresses = Exception{"after an unclean death the link with its addresses", func(command, output string) string {
		if !strings.HasPrefix(command, "ip ") {
			return output
		}
		return removeAddresses(output)
	}}
)

// exceptInert are the chains of the iptables backend after an unclean death,
// which untrack no query once the lease has run out.
var exceptInert = Exception{"after an unclean death, on iptables, inert rules", func(command, output string) string {
	if command == "nft list ruleset" {
		output = nftChains.ReplaceAllString(output, "")
	}
	return removeLines(output, func(line string) bool {
		return strings.Contains(line, "TRACKLESS-") || strings.HasPrefix(line, "trackless-") // chains, sets
	})
}}

// nftChains matches a chain of ours as nft lists it, with the empty line before.
var nftChains = regexp.MustCompile(`(?m)^\n?\tchain TRACKLESS-[^{]*\{\n(\t\t.*\n)*\t\}\n`)

// Exceptions after an orderly end and after an unclean death.
var (
	exceptionsStopped = []Exception{exceptFailover, exceptAccept}
	exceptionsDead    = []Exception{exceptFailover, exceptAccept, exceptAddresses}
)

// ExceptionsStopped are those that hold after an orderly end.
func ExceptionsStopped() []Exception { return slices.Clone(exceptionsStopped) }

// failoverTable matches the name of the failover table in all families.
var failoverTable = regexp.MustCompile(`^table \S+ trackless[-_]failover\S* \{`)

// removeTables drops the tables whose first line matches from nft's output.
func removeTables(output string, first *regexp.Regexp) string {
	var kept []string
	inside := false
	for _, line := range strings.SplitAfter(output, "\n") {
		switch {
		case inside:
			inside = !strings.HasPrefix(line, "}")
		case first.MatchString(line):
			inside = true
		default:
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// removeAddresses drops what `ip` shows of the listen addresses and of the
// link for them.
func removeAddresses(output string) string {
	inLink, inAddress := false, false
	return removeLines(output, func(line string) bool {
		if line != "" && line[0] != ' ' {
			inLink = regexp.MustCompile(`^\d+: ` + LinkName + `[:@]`).MatchString(line)
			inAddress = false
		}
		if strings.HasPrefix(line, "    inet") {
			inAddress = mentionsListen(line)
		}
		return inLink || inAddress || mentionsListen(line) || strings.Contains(line, " dev "+LinkName+" ")
	})
}

func mentionsListen(line string) bool {
	return slices.ContainsFunc(strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '/' }), func(word string) bool {
		return slices.ContainsFunc(ListenAddresses, func(addr netip.Addr) bool { return addr.String() == word })
	})
}

func removeLines(text string, drop func(line string) bool) string {
	lines := slices.DeleteFunc(strings.SplitAfter(text, "\n"), func(line string) bool {
		return drop(strings.TrimSuffix(line, "\n"))
	})
	return strings.Join(lines, "")
}

// Compare adds to the result what differs from the dump taken before, and
// returns the names of the exceptions that were made use of.
func (before Dump) Compare(now Dump, exceptions []Exception, when string, result *Result) (used []string) {
	without := nodestate.State(now).Without(func(command, output string) string {
		for _, exception := range exceptions {
			less := exception.remove(command, output)
			if less != output && !slices.Contains(used, exception.Name) {
				used = append(used, exception.Name)
			}
			output = less
		}
		return output
	})
	if difference := nodestate.State(before).Diff(without); difference != "" {
		result.Fail(FailLeftover, "%s, the node differs from before:\n%s", when, difference)
	}
	return used
}
