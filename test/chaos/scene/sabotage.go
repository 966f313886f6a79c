package scene

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/lab"
)

// What stands here is what a node has that does not care: rules that belong to
// nobody and addresses that nobody looks after. Most of it is what Kubernetes'
// node-cache leaves on a node.

// PlainTable untracks DNS to the listen addresses for good, in a table that
// belongs to no process.
func PlainTable() string {
	listen4, listen6 := Joined(false), Joined(true)
	return fmt.Sprintf(`table inet plain {
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		%[1]s
	}
	chain output {
		type filter hook output priority raw; policy accept;
		%[1]s
	}
}
`, strings.Join([]string{
		fmt.Sprintf("ip daddr { %s } meta l4proto { tcp, udp } th dport 53 notrack", listen4),
		fmt.Sprintf("ip6 daddr { %s } meta l4proto { tcp, udp } th dport 53 notrack", listen6),
		fmt.Sprintf("ip saddr { %s } meta l4proto { tcp, udp } th sport 53 notrack", listen4),
		fmt.Sprintf("ip6 saddr { %s } meta l4proto { tcp, udp } th sport 53 notrack", listen6),
	}, "\n\t\t"))
}

// Joined lists the listen addresses of a family, as nft takes them.
func Joined(ipv6 bool) string {
	var texts []string
	for _, addr := range ListenAddresses {
		if addr.Is6() == ipv6 {
			texts = append(texts, addr.String())
		}
	}
	return strings.Join(texts, ", ")
}

// LeaveRules installs query and response rules that outlive the process.
func LeaveRules(s *Scene) error {
	_, err := RunProgram(s.Node.Namespace, PlainTable(), "nft", "-f", "-")
	return err
}

// RulesStay is the sabotage of the faults in which the rules must go.
var RulesStay = Sabotage{
	What:  "the query rules in a table that belongs to no process and has no lease",
	Fails: FailLost, Apply: LeaveRules,
}

// WithoutReconciler serves with addresses and rules that the test puts there and
// nobody looks after: the same cache without notrack.
func WithoutReconciler(rules func(*Scene) error) func(*Scene) error {
	return func(s *Scene) error {
		if err := s.addAddresses(); err != nil {
			return err
		}
		var err error
		if s.Server, err = s.Launch(s.Corefile(false, MetricsAddress)); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
		defer cancel()
		// Asked without any rules it is kube-dns that would answer, so the
		// server is asked on the one address that kube-proxy does not know.
		if err := s.Server.AwaitAnswer(ctx, s.Node.Namespace, lab.UDP, lab.LinkLocalDNS4, lab.Trackless); err != nil {
			return err
		}
		return rules(s)
	}
}

func (s *Scene) addAddresses() error {
	for _, addr := range ListenAddresses {
		if err := RunAll(s.Node.Namespace, AddAddress(addr, "lo")); err != nil {
			return err
		}
	}
	return nil
}

// AddAddress is the command that puts the address on the link.
func AddAddress(addr netip.Addr, link string) string {
	if addr.Is6() {
		return fmt.Sprintf("ip address replace %s/128 dev %s nodad preferred_lft 0", addr, link)
	}
	return fmt.Sprintf("ip address replace %s/32 dev %s scope host", addr, link)
}

// PlainIPTables is the plain table with the iptables binaries.
func PlainIPTables(s *Scene) error {
	for _, addr := range ListenAddresses {
		program := "iptables"
		if addr.Is6() {
			program = "ip6tables"
		}
		for _, protocol := range []string{"udp", "tcp"} {
			for _, chain := range []string{"PREROUTING", "OUTPUT"} {
				rule := program + " -w 5 -t raw -A " + chain + " -p " + protocol + " "
				if err := RunAll(s.Node.Namespace,
					rule+"-d "+addr.String()+" --dport 53 -j CT --notrack",
					rule+"-s "+addr.String()+" --sport 53 -j CT --notrack"); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// LeasedOverNetlink installs query rules with a lease of one second that is
// renewed by transactions, four times a second, until the scene ends.
func LeasedOverNetlink(s *Scene) error {
	listen4, listen6 := Joined(false), Joined(true)
	if _, err := RunProgram(s.Node.Namespace, fmt.Sprintf(`table inet leased {
	set live4 { type ipv4_addr; flags timeout; }
	set live6 { type ipv6_addr; flags timeout; }
	chain prerouting {
		type filter hook prerouting priority raw; policy accept;
		%[1]s
	}
	chain output {
		type filter hook output priority raw; policy accept;
		%[1]s
	}
}
`, strings.Join([]string{
		"ip daddr @live4 meta l4proto { tcp, udp } th dport 53 notrack",
		"ip6 daddr @live6 meta l4proto { tcp, udp } th dport 53 notrack",
		fmt.Sprintf("ip saddr { %s } meta l4proto { tcp, udp } th sport 53 notrack", listen4),
		fmt.Sprintf("ip6 saddr { %s } meta l4proto { tcp, udp } th sport 53 notrack", listen6),
	}, "\n\t\t")), "nft", "-f", "-"); err != nil {
		return err
	}
	renew := func() error {
		script := ""
		for _, set := range []struct{ name, addrs string }{{"live4", listen4}, {"live6", listen6}} {
			for _, addr := range strings.Split(set.addrs, ", ") {
				script += fmt.Sprintf("add element inet leased %[1]s { %[2]s timeout 1s }\ndelete element inet leased %[1]s { %[2]s }\nadd element inet leased %[1]s { %[2]s timeout 1s }\n", set.name, addr)
			}
		}
		_, err := RunProgram(s.Node.Namespace, script, "nft", "-f", "-")
		return err
	}
	if err := renew(); err != nil {
		return err
	}
	stop := make(chan struct{})
	var renewing sync.WaitGroup
	var last error
	renewing.Go(func() {
		ticker := time.NewTicker(250 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				last = renew()
			case <-stop:
				return
			}
		}
	})
	s.Cleanups = append(s.Cleanups, func() error {
		close(stop)
		renewing.Wait()
		return last
	})
	return nil
}

// Nothing serves nothing: kube-dns alone.
func Nothing(*Scene) error { return nil }

// TakeAddresses takes the listen addresses away, whoever needs them.
func TakeAddresses(s *Scene) error {
	var errs []error
	for _, addr := range ListenAddresses {
		errs = append(errs, DeleteAddress(s, addr))
	}
	return errors.Join(errs...)
}

// TakeAddressesAndRoutes does as one that stops and thinks itself alone, more
// than once: the other puts them back within some milliseconds.
func TakeAddressesAndRoutes(s *Scene) error {
	for range 3 {
		for _, addr := range ListenAddresses {
			link, err := s.linkOf(addr)
			if err != nil {
				continue // not yet put back
			}
			family := "-4"
			if addr.Is6() {
				family = "-6"
			}
			// What fails is not there any more, or not yet.
			_ = DeleteAddress(s, addr)
			_ = RunAll(s.Node.Namespace, fmt.Sprintf("ip %s route delete local %s dev %s table local proto 84", family, addr, link))
		}
	}
	return nil
}
