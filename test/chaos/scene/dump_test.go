package scene

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExceptions(t *testing.T) {
	for _, tt := range []struct {
		name, command, before, now string
		exceptions                 []Exception
		used                       []string
		differs                    bool
	}{
		{name: "nothing changed", command: "nft list ruleset", before: "table ip a {\n}\n", now: "table ip a {\n}\n"},
		{name: "a rule of ours is left", command: "nft list ruleset", now: "table inet trackless-1 {\n}\n",
			exceptions: exceptionsDead, differs: true},
		{name: "something of others is gone", command: "ip rule show", before: "0: from all lookup local\n",
			exceptions: exceptionsDead, differs: true},
		{name: "the order changed", command: "iptables-nft-save", before: "-A a\n-A b\n", now: "-A b\n-A a\n", differs: true},
		{
			name: "the failover table", command: "nft list ruleset",
			before:     "table ip a {\n\tchain b {\n\t}\n}\n",
			now:        "table ip a {\n\tchain b {\n\t}\n}\ntable inet trackless-failover {\n\tchain c {\n\t}\n}\n",
			exceptions: exceptionsStopped, used: []string{exceptFailover.Name},
		},
		{
			name: "the failover table where nothing may be left", command: "nft list ruleset",
			now: "table inet trackless-failover {\n}\n", differs: true,
		},
		{
			name: "an accept rule", command: "iptables-nft-save",
			before:     "*filter\nCOMMIT\n",
			now:        "*filter\n-A INPUT -p udp -m comment --comment \"trackless\" -j ACCEPT\nCOMMIT\n",
			exceptions: exceptionsStopped, used: []string{exceptAccept.Name},
		},
		{
			name: "addresses after an unclean death", command: "ip address show",
			before:     "1: lo: <LOOPBACK>\n    inet 127.0.0.1/8 scope host lo\n       valid_lft forever preferred_lft forever\n",
			now:        "1: lo: <LOOPBACK>\n    inet 127.0.0.1/8 scope host lo\n       valid_lft forever preferred_lft forever\n    inet 169.254.20.10/32 scope host lo\n",
			exceptions: exceptionsDead, used: []string{exceptAddresses.Name},
		},
		{
			name: "the link after an unclean death", command: "ip address show",
			before:     "1: lo: <LOOPBACK>\n",
			now:        "1: lo: <LOOPBACK>\n7: nodelocaldns: <NOARP>\n    link/ether 0a:00:00:00:00:01\n    inet 10.96.0.10/32 scope host nodelocaldns\n",
			exceptions: exceptionsDead, used: []string{exceptAddresses.Name},
		},
		{
			name: "routes after an unclean death", command: "ip route show table all",
			before: "default via 192.0.2.1 dev uplink\n",
			now:    "default via 192.0.2.1 dev uplink\nlocal 10.96.0.10 dev lo table local proto kernel scope host src 10.96.0.10\n",

			exceptions: exceptionsDead, used: []string{exceptAddresses.Name},
		},
		{
			name: "addresses after an orderly end", command: "ip address show",
			now: "    inet 169.254.20.10/32 scope host lo\n", exceptions: exceptionsStopped, differs: true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var result Result
			used := Dump{tt.command: tt.before}.Compare(Dump{tt.command: tt.now}, tt.exceptions, "after", &result)
			if (len(result.Failures) > 0) != tt.differs {
				t.Errorf("failures %v, want some: %v", result.Failures, tt.differs)
			}
			if strings.Join(used, ";") != strings.Join(tt.used, ";") && !tt.differs {
				t.Errorf("made use of %q, want %q", used, tt.used)
			}
		})
	}
}

// TestAddFault holds the test build against the directive list as it is.
func TestAddFault(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "cmd", "trackless", "directives.go"))
	if err != nil {
		t.Fatal(err)
	}
	amended, err := addFault(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(amended, "\t\"fault\",\n\t\"cache\",\n") || !strings.Contains(amended, "/test/chaos/fault\"\n)") {
		t.Errorf("the directive is not in the list:\n%s", amended)
	}
}
