package rules

import (
	"strings"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/lab/clients"
	"github.com/trackless-dns/trackless/test/chaos/scene"
)

// Firewalls are hosts that let in what belongs to tracked flows only, as most
// firewalls are written.
func Firewalls() []*scene.Case {
	unaccepted := scene.Sabotage{What: "accept rules for untracked DNS", Fails: scene.FailLost, Server: scene.WithoutReconciler(scene.LeaveRules)}
	return []*scene.Case{
		{
			Name: "input-drop", Fault: "`iptables-restore` of a set that drops untracked input", Bar: "at most 1 s of queries",
			Prime: func(s *scene.Scene) error {
				return scene.FirstError(func() error { return restore(s, droppingSet) }, func() error { return restore(s, emptySet) })
			},
			Undo:     func(s *scene.Scene) error { return restore(s, emptySet) },
			Sabotage: unaccepted,
			Play: func(s *scene.Scene) error {
				return scene.Disturb(s, "restored", func() error { return restore(s, droppingSet) })
			},
		},
		{
			Name: "policy-drop", Fault: "INPUT, OUTPUT and FORWARD policy DROP of a kubeadm host, lo accepted", Bar: "at most 1 s of queries",
			Prime: func(s *scene.Scene) error {
				return scene.FirstError(func() error { return restore(s, kubeadmSet) }, func() error { return restore(s, emptySet) })
			},
			Undo:     func(s *scene.Scene) error { return restore(s, emptySet) },
			Sabotage: unaccepted,
			Play: func(s *scene.Scene) error {
				return scene.Disturb(s, "restored", func() error { return restore(s, kubeadmSet) })
			},
		},
		{
			Name: "policy-drop-ufw", Fault: "start on a host with ufw's rules", Bar: "0 lost",
			Prime:    func(s *scene.Scene) error { return restore(s, emptySet) },
			Prepare:  func(s *scene.Scene) error { return restore(s, ufwSet) },
			Undo:     func(s *scene.Scene) error { return restore(s, emptySet) },
			Sabotage: unaccepted,
			Play:     playStartedBehind,
		},
		{
			Name: "policy-drop-legacy", Fault: "start on a host with iptables-legacy and policy DROP, lo accepted", Bar: "0 lost",
			Prime:    func(s *scene.Scene) error { return restoreLegacy(s, emptySet) },
			Prepare:  func(s *scene.Scene) error { return restoreLegacy(s, kubeadmSet) },
			Undo:     func(s *scene.Scene) error { return restoreLegacy(s, emptySet) },
			Sabotage: unaccepted,
			Play:     playStartedBehind,
		},
		{
			Name: "firewalld", Fault: "a foreign table that rejects untracked input, lo accepted, comes and goes", Bar: "at most 1.5 s of queries, then kube-dns",
			Undo: func(s *scene.Scene) error {
				if !s.Sabotaged {
					return nil
				}
				return scene.RunAll(s.Node.Namespace, "nft delete table inet firewalld")
			},
			Sabotage: scene.Sabotage{What: "the look at the chains of others", Fails: scene.FailLost, Server: scene.WithoutReconciler(scene.LeaveRules), Instead: lab.Trackless},
			Play:     playFirewalld,
		},
		{
			Name: "hidden-drop", Fault: "untracked input of the pods dropped by a rule that no look at the rules understands", Bar: "at most 1.5 s of queries, then kube-dns",
			Undo:     func(s *scene.Scene) error { return scene.RunAll(s.Node.Namespace, "nft delete table inet hidden") },
			Sabotage: scene.Sabotage{What: "the look at what arrives from each device", Fails: scene.FailLost, Server: scene.WithoutReconciler(scene.LeaveRules)},
			Play:     playHiddenDrop,
		},
	}
}

// playHiddenDrop drops the untracked input of the pods.
func playHiddenDrop(s *scene.Scene) error {
	if err := s.Fault("dropped", scene.LeaseBar); err != nil {
		return err
	}
	if _, err := scene.RunProgram(s.Node.Namespace, hiddenTable, "nft", "-f", "-"); err != nil {
		return err
	}
	s.Let(scene.LeaseBar)
	s.SteadyPhase(scene.Phase{Name: "pods set aside", Want: lab.KubeDNS, Only: func(stream clients.Stream) bool { return stream.From != s.Node.Namespace }}, scene.Outage)
	return nil
}

// playFirewalld installs a table that rejects untracked input, and deletes it.
func playFirewalld(s *scene.Scene) error {
	if err := s.Fault("rejected", scene.LeaseBar); err != nil {
		return err
	}
	if _, err := scene.RunProgram(s.Node.Namespace, rejectingTable, "nft", "-f", "-"); err != nil {
		return err
	}
	s.Let(scene.LeaseBar)
	s.Steady("detached", lab.KubeDNS, scene.Outage)
	if s.Sabotaged {
		return nil
	}
	if err := s.Fault("gone", scene.NoLoss); err != nil {
		return err
	}
	if err := scene.RunAll(s.Node.Namespace, "nft delete table inet firewalld"); err != nil {
		return err
	}
	s.Await(lab.Trackless)
	s.Steady("attached again", lab.Trackless, time.Second)
	return nil
}

// playStartedBehind shows that trackless, which has started behind a firewall,
// answers, and that kube-dns could take over.
func playStartedBehind(s *scene.Scene) error {
	if err := s.Reach("fault"); err != nil {
		return err
	}
	s.Steady("behind the firewall", lab.Trackless, scene.Outage)
	return s.ProveTakeover()
}

func restoreLegacy(s *scene.Scene, set string) error {
	for _, program := range []string{"iptables-legacy-restore", "ip6tables-legacy-restore"} {
		if _, err := scene.RunProgram(s.Node.Namespace, inFamily(set, strings.HasPrefix(program, "ip6")), program, "-w", "5"); err != nil {
			return err
		}
	}
	return nil
}

// droppingSet lets in what belongs to known flows, and nothing untracked.
const droppingSet = `*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -p icmp -j ACCEPT
COMMIT
`

// kubeadmSet is a node whose owner wrote down what it may do. The checks of an
// instance go over lo and are let in where every pod is lost.
const kubeadmSet = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -p tcp -m conntrack --ctstate NEW -m multiport --dports 22,6443,10250 -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A FORWARD -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -p icmp -j ACCEPT
COMMIT
`

// ufwSet is the skeleton of ufw's chains.
const ufwSet = `*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-input - [0:0]
:ufw-before-forward - [0:0]
:ufw-not-local - [0:0]
:ufw-user-input - [0:0]
-A INPUT -j ufw-before-input
-A FORWARD -j ufw-before-forward
-A ufw-before-forward -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -j ufw-user-input
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j RETURN
-A ufw-not-local -j DROP
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
`

// rejectingTable has the shape of firewalld's: the table of one program, which
// writes it as a whole.
const rejectingTable = `table inet firewalld {
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		iifname "lo" accept
		icmpv6 type { nd-neighbor-advert, nd-neighbor-solicit, nd-router-advert } accept
		jump filter_INPUT_ZONES
		reject with icmpx admin-prohibited
	}
	chain filter_INPUT_ZONES {
		tcp dport 22 accept
	}
}
`

// hiddenTable asks for a mark, which the packet may have been given by anybody.
const hiddenTable = `table inet hidden {
	chain input {
		type filter hook input priority filter + 5; policy accept;
		iifname != "lo" ct state untracked meta mark != 0x1 drop
	}
}
`
