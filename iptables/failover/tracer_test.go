package failover

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/iptables"
	"github.com/trackless-dns/trackless/iptables/internal/nfnl"
	"github.com/trackless-dns/trackless/iptables/internal/tracetest"
)

// failoverTraces says what the failover table does to packets, in the form of the cases
// of package tracetest. A row is about one packet at one chain; ct is its conntrack
// state. In the kernel the packets in send bring about that state: the last of them is
// the packet of the row.
//
// Clients ask from a port of their own in every row, written C. The failover
// goes from local and local2 to vip, behind the device dns0.
var failoverTraces = []struct {
	name   string
	chain  string
	packet string // at the chain
	ct     Tracking
	send   []string // HOOK DEVICE PROTO[FLAGS] SOURCE > DESTINATION
	want   string
}{
	{"a query", "prerouting", "udp pod:C > local:53", Tracking{}, nil, "rewritten pod:C > vip:53 zone 53"},
	{"a query over TCP", "prerouting", "tcp[S] pod:C > local:53", Tracking{}, nil, "rewritten pod:C > vip:53 zone 53"},
	{"a query to the second address of the Service", "prerouting", "udp pod:C > local2:53", Tracking{}, nil, "rewritten pod:C > vip:53 zone 54"},
	{"a query to it over TCP", "prerouting", "tcp[S] pod:C > local2:53", Tracking{}, nil, "rewritten pod:C > vip:53 zone 54"},
	{"a query that is untracked", "prerouting", "udp pod:C > local:53", Tracking{Untracked: true}, nil, "untracked"},
	{"another port", "prerouting", "udp pod:C > local:54", Tracking{}, nil, "tracked"},
	{"a query to the Service", "prerouting", "udp pod:C > vip:53", Tracking{}, nil, "tracked"},

	{"a query from outside", "prerouting", "udp outside:C > local:53", Tracking{}, []string{"prerouting uplink2 udp outside:C > local:53"}, "dropped"},
	{"a query from outside over TCP", "prerouting", "tcp[S] outside:C > local:53", Tracking{}, []string{"prerouting uplink2 tcp[S] outside:C > local:53"}, "dropped"},
	{"a query from outside to the second address", "prerouting", "udp outside:C > local2:53", Tracking{}, []string{"prerouting uplink2 udp outside:C > local2:53"}, "dropped"},
	{"a query from outside to it over TCP", "prerouting", "tcp[S] outside:C > local2:53", Tracking{}, []string{"prerouting uplink2 tcp[S] outside:C > local2:53"}, "dropped"},
	{"a query over an uplink from a client that we serve", "prerouting", "udp pod:C > local:53", Tracking{}, []string{"prerouting uplink2 udp pod:C > local:53"}, "rewritten pod:C > vip:53 zone 53"},
	{"another port, from outside", "prerouting", "udp outside:C > local:54", Tracking{}, []string{"prerouting uplink2 udp outside:C > local:54"}, "tracked"},
	{"a query from outside to the Service", "prerouting", "udp outside:C > vip:53", Tracking{}, []string{"prerouting uplink2 udp outside:C > vip:53"}, "tracked"},

	{"a query of the node", "output", "udp local:C > local:53", Tracking{}, nil, "rewritten local:C > vip:53 zone 53"},
	{"a query of the node over TCP", "output", "tcp[S] node:C > local:53", Tracking{}, nil, "rewritten node:C > vip:53 zone 53"},
	{"a query of the node to the second address", "output", "udp local2:C > local2:53", Tracking{}, nil, "rewritten local2:C > vip:53 zone 54"},
	{"a query of the node to it over TCP", "output", "tcp[S] local2:C > local2:53", Tracking{}, nil, "rewritten local2:C > vip:53 zone 54"},
	{"a query of the node that is untracked", "output", "udp local:C > local:53", Tracking{Untracked: true}, nil, "untracked"},
	{"a query of the node to the Service", "output", "udp node:C > vip:53", Tracking{}, nil, "tracked"},

	{"a response", "postrouting", "udp vip:53 > pod:C", Tracking{Reply: true, Zone: 53},
		[]string{"prerouting pod0 udp pod:C > local:53", "prerouting dns0 udp vip:53 > pod:C"}, "rewritten local:53 > pod:C zone 53"},
	{"a response over TCP", "postrouting", "tcp[SA] vip:53 > pod:C", Tracking{Reply: true, Zone: 53},
		[]string{"prerouting pod0 tcp[S] pod:C > local:53", "prerouting dns0 tcp[SA] vip:53 > pod:C"}, "rewritten local:53 > pod:C zone 53"},
	{"a response for the second address", "postrouting", "udp vip:53 > pod:C", Tracking{Reply: true, Zone: 54},
		[]string{"prerouting pod0 udp pod:C > local2:53", "prerouting dns0 udp vip:53 > pod:C"}, "rewritten local2:53 > pod:C zone 54"},
	{"a response for it over TCP", "postrouting", "tcp[SA] vip:53 > pod:C", Tracking{Reply: true, Zone: 54},
		[]string{"prerouting pod0 tcp[S] pod:C > local2:53", "prerouting dns0 tcp[SA] vip:53 > pod:C"}, "rewritten local2:53 > pod:C zone 54"},
	{"a response to a client that asked the Service", "postrouting", "udp vip:53 > pod:C", Tracking{Reply: true},
		[]string{"prerouting pod0 udp pod:C > vip:53", "prerouting dns0 udp vip:53 > pod:C"}, "tracked"},
	{"a query that leaves", "postrouting", "udp pod:C > vip:53", Tracking{Zone: 53},
		[]string{"prerouting pod0 udp pod:C > local:53"}, "tracked"},

	{"a response to the node", "input", "udp vip:53 > node:C", Tracking{Reply: true, Zone: 53},
		[]string{"output dns0 udp node:C > local:53", "prerouting dns0 udp vip:53 > node:C"}, "rewritten local:53 > node:C zone 53"},
	{"a response to the node over TCP", "input", "tcp[SA] vip:53 > node:C", Tracking{Reply: true, Zone: 53},
		[]string{"output dns0 tcp[S] node:C > local:53", "prerouting dns0 tcp[SA] vip:53 > node:C"}, "rewritten local:53 > node:C zone 53"},
	{"a response to the node for the second address", "input", "udp vip:53 > node:C", Tracking{Reply: true, Zone: 54},
		[]string{"output dns0 udp node:C > local2:53", "prerouting dns0 udp vip:53 > node:C"}, "rewritten local2:53 > node:C zone 54"},
	{"a response to the node for it over TCP", "input", "tcp[SA] vip:53 > node:C", Tracking{Reply: true, Zone: 54},
		[]string{"output dns0 tcp[S] node:C > local2:53", "prerouting dns0 tcp[SA] vip:53 > node:C"}, "rewritten local2:53 > node:C zone 54"},
	{"a response to the node that asked the Service", "input", "udp vip:53 > node:C", Tracking{Reply: true},
		[]string{"output dns0 udp node:C > vip:53", "prerouting dns0 udp vip:53 > node:C"}, "tracked"},

	{"the listen address as a source", "masquerading", "udp local:C > vip:53", Tracking{Zone: 53},
		[]string{"output dns0 udp local:C > local:53"}, "masqueraded"},
	{"the second listen address as a source", "masquerading", "udp local2:C > vip:53", Tracking{Zone: 54},
		[]string{"output dns0 udp local2:C > local2:53"}, "masqueraded"},
	{"another source", "masquerading", "udp node:C > vip:53", Tracking{Zone: 53},
		[]string{"output dns0 udp node:C > local:53"}, "tracked"},
	{"the listen address as a source to the Service itself", "masquerading", "udp local:C > vip:53", Tracking{},
		[]string{"output dns0 udp local:C > vip:53"}, "tracked"},

	{"a stray of the node's own connection", "postrouting", "tcp[SA] local:C > vip:53", Tracking{Invalid: true},
		[]string{"output dns0 tcp[SA] local:C > local:53"}, "dropped"},
	{"a stray of one to the second address", "postrouting", "tcp[SA] local2:C > vip:53", Tracking{Invalid: true},
		[]string{"output dns0 tcp[SA] local2:C > local2:53"}, "dropped"},
	{"a stray of a pod's connection", "postrouting", "tcp[SA] pod:C > vip:53", Tracking{Invalid: true},
		[]string{"prerouting pod0 tcp[SA] pod:C > local:53"}, "tracked"},
}

func init() {
	tracetest.Names["local2"] = [2]string{"169.254.20.11", "fd00::20:11"}
	tracetest.Names["node"] = [2]string{"10.9.0.1", "fd00:9::1"}
}

func failoverTracePairs() []Pair {
	var out []Pair
	for _, f := range nfnl.Families {
		for _, listen := range []string{"local", "local2"} {
			out = append(out, Pair{Listen: tracetest.Addr(f, listen), Service: tracetest.Addr(f, "vip")})
		}
	}
	return out
}

// failoverOutside are the clients behind uplink2 except the pods.
func failoverOutside() Outside {
	o := Outside{Uplinks: []string{"uplink2"}}
	for _, f := range nfnl.Families {
		o.Sources = append(o.Sources, netip.MustParsePrefix(tracetest.Name(f, "pods")))
	}
	return o
}

// withPort fills in the client's port of a row.
func withPort(text string, port int) string {
	return strings.ReplaceAll(text, ":C", fmt.Sprintf(":%d", port))
}

// failoverWant is the wanted result with addresses in place of their names.
func failoverWant(f iptables.Family, want string, port int) string {
	words := strings.Fields(withPort(want, port))
	if len(words) > 1 {
		words[1], words[3] = tracetest.Name(f, words[1]), tracetest.Name(f, words[3])
	}
	return strings.Join(words, " ")
}

func mustTraceFailover(t *testing.T, chains []failoverChain, f iptables.Family, row, port int) string {
	t.Helper()
	tc := failoverTraces[row]
	device := "pod0"
	if n := len(tc.send); n > 0 {
		device = strings.Fields(tc.send[n-1])[1]
	}
	_, p := tracetest.ReadPacket(f, strings.Fields("prerouting "+device+" "+withPort(tc.packet, port)))
	got, err := traceFailover(chains, tc.chain, p, tc.ct)
	if err != nil {
		t.Fatal(err)
	}
	if counts := got.counted != ""; counts != got.rewritten {
		t.Errorf("%s: rewritten %t, counted as %q", tc.name, got.rewritten, got.counted)
	}
	return got.String()
}

func allFailoverChains(t *testing.T) []failoverChain {
	t.Helper()
	pairs, err := normalizeFailover(failoverTracePairs())
	if err != nil {
		t.Fatal(err)
	}
	return failoverChains(pairs, failoverOutside().normalize())
}

func TestFailoverTwinTraces(t *testing.T) {
	chains := allFailoverChains(t)
	for _, f := range nfnl.Families {
		for i, tc := range failoverTraces {
			if got, want := mustTraceFailover(t, chains, f, i, 4000), failoverWant(f, tc.want, 4000); got != want {
				t.Errorf("%s, %s: %s, want %s", f, tc.name, got, want)
			}
		}
	}
}
