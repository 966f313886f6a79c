// Package nodestate shows what is configured on a node, so that tests can hold
// the node as it is against the node as it was.
package nodestate

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ipsets is what stands in the place of a command for the sets of ip_set, which
// are read over netlink: few machines have the program ipset.
const ipsets = "ipset list -name"

// Commands show everything that rules, sets, links, addresses and routes are made
// of. The legacy tables are read where there are any: asking makes none.
var Commands = []string{
	"nft list ruleset",
	"iptables-nft-save",
	"ip6tables-nft-save",
	"iptables-legacy-save",
	"ip6tables-legacy-save",
	ipsets,
	"ip address show",
	"ip route show table all",
	"ip -6 route show table all",
	"ip rule show",
	"ip -6 rule show",
}

// State is what the commands show, by command, without counters, ages and dates.
type State map[string]string

// volatile is what differs from one moment to the next without meaning anything.
var volatile = []struct {
	pattern *regexp.Regexp
	replace string
}{
	{regexp.MustCompile(`(?m)^# .*\n`), ""},                            // iptables-save: program, date
	{regexp.MustCompile(`\[\d+:\d+\]`), "[0:0]"},                       // iptables-save: counters
	{regexp.MustCompile(`packets \d+ bytes \d+`), "packets 0 bytes 0"}, // nft: counters
	{regexp.MustCompile(` expires [0-9a-z]+`), ""},                     // nft, ip: ages
}

// Read reads the state of the thread's network namespace.
func Read() (State, error) {
	state := State{}
	for _, command := range Commands {
		out, err := show(command)
		if err != nil {
			return nil, err
		}
		for _, v := range volatile {
			out = v.pattern.ReplaceAllString(out, v.replace)
		}
		state[command] = out
	}
	return state, nil
}

func show(command string) (string, error) {
	if command == ipsets {
		return setNames()
	}
	words := strings.Fields(command)
	out, err := exec.Command(words[0], words[1:]...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return "", fmt.Errorf("%s: %w", command, err)
	}
	return string(out), nil
}

// Without returns the state with what a function leaves of the output of each
// command.
func (s State) Without(less func(command, output string) string) State {
	out := State{}
	for command, output := range s {
		out[command] = less(command, output)
	}
	return out
}

// Diff returns, by command, the lines that only one of the states has; it is empty
// if they are equal.
func (s State) Diff(now State) string {
	var b strings.Builder
	for _, command := range Commands {
		if d := diff(s[command], now[command]); d != "" {
			fmt.Fprintf(&b, "`%s`:\n%s\n", command, d)
		}
	}
	return b.String()
}

// diff lists the lines that only one of the texts has, "" if there are none and the
// order is the same.
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

// From include/uapi/linux/netfilter/nfnetlink.h and ipset/ip_set.h.
const (
	ipsetList         = 6<<8 | 7 // NFNL_SUBSYS_IPSET, IPSET_CMD_LIST
	ipsetProtocol     = 6
	ipsetAttrProtocol = 1
	ipsetAttrSetName  = 2
)

// setNames lists the sets of ip_set, one a line. A kernel without ip_set has none.
func setNames() (string, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return "", fmt.Errorf("list ipsets: %w", err)
	}
	defer conn.Close()
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: ipsetAttrProtocol, Data: []byte{ipsetProtocol}}})
	if err != nil {
		return "", err
	}
	msgs, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: ipsetList, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list ipsets: %w", err)
	}
	var names []string
	for _, m := range msgs {
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return "", fmt.Errorf("list ipsets: %w", err)
		}
		for ad.Next() {
			if ad.Type() == ipsetAttrSetName {
				names = append(names, ad.String()+"\n")
			}
		}
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ""), nil
}
