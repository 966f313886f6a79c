package chaos

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

// A Dump is the configuration of a node as the usual programs show it, by the
// command that shows it, without counters, ages and dates.
type Dump map[string]string

// dumpCommands show everything that trackless could leave behind. The legacy
// tables are read where there are any: asking makes none.
var dumpCommands = []string{
	"nft list ruleset",
	"iptables-save",
	"ip6tables-save",
	"iptables-legacy-save",
	"ip6tables-legacy-save",
	"ip address show",
	"ip route show table all",
	"ip -6 route show table all",
	"ip rule show",
	"ip -6 rule show",
}

// volatile is what differs from one moment to the next without meaning
// anything.
var volatile = []struct {
	pattern *regexp.Regexp
	replace string
}{
	{regexp.MustCompile(`(?m)^# .*\n`), ""},                            // iptables-save: program, date
	{regexp.MustCompile(`\[\d+:\d+\]`), "[0:0]"},                       // iptables-save: counters
	{regexp.MustCompile(`packets \d+ bytes \d+`), "packets 0 bytes 0"}, // nft: counters
	{regexp.MustCompile(` expires [0-9a-z]+`), ""},                     // nft, ip: ages
}

// TakeDump reads the configuration of the namespace.
func TakeDump(ns *lab.Namespace) (Dump, error) {
	dump := Dump{}
	for _, command := range dumpCommands {
		words := strings.Fields(command)
		out, err := run(ns, "", words[0], words[1:]...)
		if err != nil {
			return nil, err
		}
		for _, v := range volatile {
			out = v.pattern.ReplaceAllString(out, v.replace)
		}
		dump[command] = out
	}
	return dump, nil
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

// An Exception is something that may be there afterwards and was not before
// (DESIGN.md, guarantee 5).
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
	return removeLines(output, func(line string) bool { return strings.Contains(line, "TRACKLESS-") })
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
			inLink = regexp.MustCompile(`^\d+: ` + linkName + `[:@]`).MatchString(line)
			inAddress = false
		}
		if strings.HasPrefix(line, "    inet") {
			inAddress = mentionsListen(line)
		}
		return inLink || inAddress || mentionsListen(line) || strings.Contains(line, " dev "+linkName+" ")
	})
}

func mentionsListen(line string) bool {
	return slices.ContainsFunc(strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '/' }), func(word string) bool {
		return slices.ContainsFunc(listenAddresses, func(addr netip.Addr) bool { return addr.String() == word })
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
	for _, command := range dumpCommands {
		output := now[command]
		for _, exception := range exceptions {
			without := exception.remove(command, output)
			if without != output && !slices.Contains(used, exception.Name) {
				used = append(used, exception.Name)
			}
			output = without
		}
		if difference := diff(before[command], output); difference != "" {
			result.fail(FailLeftover, "%s, `%s` differs from before:\n%s", when, command, difference)
		}
	}
	return used
}

// diff lists the lines that only one of the texts has, "" if there are none
// and the order is the same.
func diff(before, now string) string {
	if before == now {
		return ""
	}
	count := map[string]int{}
	for line := range strings.Lines(before) {
		count[line]--
	}
	for line := range strings.Lines(now) {
		count[line]++
	}
	var b strings.Builder
	for line := range strings.Lines(before) {
		if count[line] < 0 {
			count[line]++
			b.WriteString("- " + line)
		}
	}
	for line := range strings.Lines(now) {
		if count[line] > 0 {
			count[line]--
			b.WriteString("+ " + line)
		}
	}
	if b.Len() == 0 {
		return "(the same lines in another order)"
	}
	return strings.TrimSuffix(b.String(), "\n")
}
