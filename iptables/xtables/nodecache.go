package xtables

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Comments of the rules of Kubernetes' node-cache (kubernetes/dns,
// cmd/node-cache/app/cache_app.go), by the target that such a rule has.
const (
	nodeCacheSkip  = "NodeLocal DNS Cache: skip conntrack"
	nodeCacheAllow = "NodeLocal DNS Cache: allow DNS traffic"
)

// nodeCacheChains are where it puts them, by table.
var nodeCacheChains = map[string][]string{
	"raw":    {preroutingChain, outputChain},
	"filter": {"INPUT", outputChain},
}

// Adopt deletes what Kubernetes' node-cache left for the addresses, and for
// those at which nobody in this network namespace listens any more: its rules
// untrack for good, so that without a listener nobody answers. Rules of the same
// words that are there many times all go. It looks at the tables of both
// variants, in one transaction for each family, and returns how many it deleted.
//
// Rules are told by their comment, chain, target and shape.
func Adopt(addrs []netip.Addr) (deleted int, err error) {
	var errs []error
	for _, p := range everyProgram() {
		n, err := p.adopt(addrs)
		deleted += n
		errs = append(errs, err)
	}
	return deleted, errors.Join(errs...)
}

func (p *program) adopt(addrs []netip.Addr) (deleted int, err error) {
	var lines []string
	for _, table := range []string{"raw", "filter"} {
		if !p.has(table) {
			continue
		}
		saved, err := p.save(table)
		if isUnsupported(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		var gone []string
		for _, chain := range nodeCacheChains[table] {
			for _, r := range parseSaved(saved).rules[chain] {
				a, port, ok := nodeCacheRule(table, r.text)
				if ok && (slices.Contains(addrs, a) || !listening(a, port)) {
					gone = append(gone, "-D "+chain+" "+r.text)
				}
			}
		}
		if len(gone) > 0 {
			lines = append(append(append(lines, "*"+table), gone...), "COMMIT")
			deleted += len(gone)
		}
	}
	if len(lines) == 0 {
		return 0, nil
	}
	if err := p.restoreTables(lines, quickWait); err != nil {
		return 0, err
	}
	return deleted, nil
}

// nodeCacheRule reports whether a rule is one of node-cache's, and of which
// address and port.
func nodeCacheRule(table, text string) (a netip.Addr, port uint16, ok bool) {
	want, targets := nodeCacheSkip, []string{"-j NOTRACK", "-j CT --notrack"}
	if table == "filter" {
		want, targets = nodeCacheAllow, []string{"-j ACCEPT"}
	}
	if commentOf(text) != want || !slices.ContainsFunc(targets, func(t string) bool { return strings.HasSuffix(text, t) }) {
		return a, 0, false
	}
	// Its rules name one address and one port, on the same side.
	text = strings.NewReplacer("-s ", "-d ", "--sport ", "--dport ").Replace(text)
	if strings.Count(text, "-d ") != 1 || strings.Count(text, "--dport ") != 1 {
		return a, 0, false
	}
	e, ok := parseEndpoint(text)
	return e.Addr, e.Port, ok
}

// listening reports whether any socket of this network namespace takes what
// comes to an address and port, over UDP or TCP.
func listening(a netip.Addr, port uint16) bool {
	for _, name := range []string{"udp", "udp6", "tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			if len(words) < 4 || strings.HasPrefix(name, "tcp") && words[3] != "0A" {
				continue
			}
			local, ok := parseSocket(words[1])
			if ok && local.Port() == port && (local.Addr() == a || local.Addr().IsUnspecified()) {
				return true
			}
		}
	}
	return false
}
