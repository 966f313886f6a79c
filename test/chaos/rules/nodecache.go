package rules

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// nodeCacheComments are those of the rules of Kubernetes' node-cache.
const (
	nodeCacheSkip  = "NodeLocal DNS Cache: skip conntrack"
	nodeCacheAllow = "NodeLocal DNS Cache: allow DNS traffic"
)

// adoptBar is how long a start over a node-cache that was killed may take: until
// then nobody answers, since its rules untrack without an end.
const adoptBar = 3 * time.Second

// Predecessors are what others leave that did the same.
func Predecessors() []*scene.Case {
	return []*scene.Case{
		{
			Name: "node-cache-killed", Fault: "node-cache killed, started over its rules, link and addresses", Bar: "0 lost after the first second, its rules gone",
			LateStart: true,
			Prime: func(s *scene.Scene) error {
				return scene.FirstError(func() error { return asNodeCache(s, "-A") }, func() error { return asNodeCache(s, "-D") })
			},
			// Before the very first start nobody serves the link-local
			// addresses; after any other the failover table does.
			Prepare: func(s *scene.Scene) error {
				if err := s.StartAttached(context.Background()); err != nil {
					return err
				}
				return s.Server.Close()
			},
			Undo: func(s *scene.Scene) error { return scene.RunAll(s.Node.Namespace, "ip link delete "+scene.LinkName) },
			Sabotage: scene.Sabotage{
				What: "the removal of node-cache's rules", Fails: scene.FailLost, At: "adopted",
				Apply: func(s *scene.Scene) error { return asNodeCache(s, "-A") },
			},
			Play: func(s *scene.Scene) error {
				if err := s.Fault("node-cache killed, trackless started", adoptBar); err != nil {
					return err
				}
				if err := leftByNodeCache(s); err != nil {
					return err
				}
				if err := s.Start(); err != nil {
					return err
				}
				s.Let(adoptBar)
				s.Steady("after", lab.Trackless, time.Second)
				if err := noRulesOfNodeCache(s); err != nil {
					s.Result.Fail(scene.FailLeftover, "%v", err)
				}
				if err := s.Reach("adopted"); err != nil {
					return err
				}
				return s.ProveTakeover()
			},
		},
	}
}

// leftByNodeCache makes what a killed node-cache leaves: the link, an address
// for each that it listened on, and its rules.
func leftByNodeCache(s *scene.Scene) error {
	if err := scene.RunAll(s.Node.Namespace, "ip link add "+scene.LinkName+" type dummy"); err != nil {
		if err := scene.RunAll(s.Node.Namespace, "ip link add "+scene.LinkName+" type ifb"); err != nil {
			return err
		}
	}
	for _, addr := range scene.ListenAddresses {
		if err := scene.RunAll(s.Node.Namespace, fmt.Sprintf("ip address add %s/%d dev %s", addr, addr.BitLen(), scene.LinkName)); err != nil {
			return err
		}
	}
	return asNodeCache(s, "-A")
}

// asNodeCache adds (-A) or deletes (-D) the twelve rules of each address by the
// plan of node-cache's own flags, with the health port 8080. It prepends each,
// so that they stand in reverse.
func asNodeCache(s *scene.Scene, verb string) error {
	for _, program := range []string{"iptables-restore", "ip6tables-restore"} {
		var raw, filter []string
		for _, addr := range scene.ListenAddresses {
			if addr.Is6() != (program == "ip6tables-restore") {
				continue
			}
			rule := func(chain, protocol, side, port, comment, target string) string {
				return fmt.Sprintf("%s %s -p %s %s %s %s %s -m comment --comment %q -j %s",
					verb, chain, protocol, side, addr, map[string]string{"-d": "--dport", "-s": "--sport"}[side], port, comment, target)
			}
			for _, protocol := range []string{"tcp", "udp"} {
				raw = append(raw,
					rule("PREROUTING", protocol, "-d", "53", nodeCacheSkip, "NOTRACK"),
					rule("OUTPUT", protocol, "-s", "53", nodeCacheSkip, "NOTRACK"),
					rule("OUTPUT", protocol, "-d", "53", nodeCacheSkip, "NOTRACK"))
				filter = append(filter,
					rule("INPUT", protocol, "-d", "53", nodeCacheAllow, "ACCEPT"),
					rule("OUTPUT", protocol, "-s", "53", nodeCacheAllow, "ACCEPT"))
			}
			raw = append(raw,
				rule("OUTPUT", "tcp", "-d", "8080", nodeCacheSkip, "NOTRACK"),
				rule("OUTPUT", "tcp", "-s", "8080", nodeCacheSkip, "NOTRACK"))
		}
		slices.Reverse(raw)
		slices.Reverse(filter)
		text := "*raw\n" + strings.Join(raw, "\n") + "\nCOMMIT\n*filter\n" + strings.Join(filter, "\n") + "\nCOMMIT\n"
		if _, err := scene.RunProgram(s.Node.Namespace, text, program, "--noflush", "-w", "5"); err != nil {
			return err
		}
	}
	return nil
}

func noRulesOfNodeCache(s *scene.Scene) error {
	for _, program := range []string{"iptables-save", "ip6tables-save"} {
		out, err := scene.RunProgram(s.Node.Namespace, "", program)
		if err != nil {
			return err
		}
		if n := strings.Count(out, "NodeLocal DNS Cache"); n > 0 {
			return fmt.Errorf("%d rules of node-cache are still there:\n%s", n, out)
		}
	}
	return nil
}
