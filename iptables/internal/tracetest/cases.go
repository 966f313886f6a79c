// Package tracetest holds one table of what the NOTRACK rules do to packets. It plays the
// table to any backend: to the simulator of the nftables backend, which runs its rules in
// memory, and to the kernel.
package tracetest

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/trackless-dns/trackless/iptables"
)

// Case is a row of the table. It is written once and played for both families, with
// names for addresses:
//
//	pod, pod2   clients behind the devices pod0 and uplink2
//	outside     a client behind the device uplink, which is an uplink
//	vip         a listen address that a Service owns
//	local       a listen address that no Service owns
//	other       an address of neither kind
//
// A step is a change of state or one packet at one hook:
//
//	install, attach, detach [CLIENT > LISTEN, a connection that is held], exempt CLIENT > LISTEN
//	quarantine DEVICE        its queries stay tracked
//	end ADDRESS              its lease ends
//	expire                   wait until no address is live
//	HOOK DEVICE PROTO[FLAGS] SOURCE > DESTINATION
//
// with S, A, F and R for the flags SYN, ACK, FIN and RST. The result of a packet is the
// verdict, then "query" or "response" if it was counted as one. Then comes a plus and the
// name of each set to which it added an element, or in which it renewed one, and a minus
// and the name of each set from which it deleted one.
type Case struct {
	Name  string
	Rules func(*iptables.Rules) // changes the result of Rules
	Steps []Step
}

// Step is one line of the table.
type Step struct{ Do, Want string }

// Names are the addresses, IPv4 and IPv6, of the names in rows.
var Names = map[string][2]string{
	"pod":     {"10.244.0.11", "fd00:244::11"},
	"pod2":    {"10.244.0.12", "fd00:244::12"},
	"outside": {"203.0.113.9", "2001:db8:9::9"},
	"vip":     {"10.96.0.10", "fd00:10:96::a"},
	"local":   {"169.254.20.10", "fd00::20:10"},
	"other":   {"10.96.0.77", "fd00:10:96::77"},
	"pods":    {"10.244.0.0/16", "fd00:244::/48"},
}

const (
	udpCheck, tcpCheck, leasePort = ":41000", ":41001", ":42000"
)

// Long is a lease that is longer than every test.
const Long = time.Minute

// Short is a lease for rows that wait until it runs out.
const Short = 200 * time.Millisecond

// Name replaces a name by its address of the family, in NAME or NAME:PORT.
func Name(f iptables.Family, text string) string {
	name, port, hasPort := strings.Cut(text, ":")
	pair, ok := Names[name]
	if !ok {
		panic("no address is named " + name)
	}
	if f == iptables.IPv4 {
		return strings.Join(slices.DeleteFunc([]string{pair[0], port}, func(s string) bool { return s == "" }), ":")
	}
	if !hasPort {
		return pair[1]
	}
	return "[" + pair[1] + "]:" + port
}

// AddrPort returns the transport address for NAME:PORT.
func AddrPort(f iptables.Family, text string) netip.AddrPort {
	return netip.MustParseAddrPort(Name(f, text))
}

// Addr returns the address for a name.
func Addr(f iptables.Family, name string) netip.Addr {
	return netip.MustParseAddr(Name(f, name))
}

// Rules returns the rules of a row without changes.
func Rules(f iptables.Family) iptables.Rules {
	vip, local := Addr(f, "vip"), Addr(f, "local")
	plan := iptables.Plan{Lease: Long, Untrack: []iptables.Endpoint{{Addr: local, Port: 8080, Proto: iptables.TCP}}}
	for _, a := range []netip.Addr{vip, local} {
		for _, proto := range []iptables.Proto{iptables.UDP, iptables.TCP} {
			plan.Listen = append(plan.Listen, iptables.Endpoint{Addr: a, Port: 53, Proto: proto})
		}
	}
	check := func(text string, proto iptables.Proto) iptables.Check {
		ap := AddrPort(f, text)
		return iptables.Check{Endpoint: iptables.Endpoint{Addr: ap.Addr(), Port: ap.Port(), Proto: proto}}
	}
	return iptables.Rules{
		Plan: plan.Normalize(),
		Checks: []iptables.Check{
			check("vip"+udpCheck, iptables.UDP), check("vip"+tcpCheck, iptables.TCP),
			check("vip"+leasePort, iptables.UDP), check("local"+leasePort, iptables.UDP),
		},
		Leases: []iptables.Lease{
			{Source: AddrPort(f, "vip"+leasePort), Listen: AddrPort(f, "vip:53")},
			{Source: AddrPort(f, "local"+leasePort), Listen: AddrPort(f, "local:53")},
		},
		Uplinks: []string{"uplink"},
		Unowned: []netip.Addr{Addr(f, "local")},
	}
}

func withoutLease(r *iptables.Rules) { r.Plan.Lease, r.Leases = 0, nil }
func withDryRun(r *iptables.Rules)   { r.Plan.DryRun = true }

// Table is Cases, and every row that is not about the lease again without a lease.
var Table = func() []Case {
	out := slices.Clone(Cases)
	for _, tc := range Cases {
		about := func(s Step) bool { return s.Do == "expire" || strings.Contains(s.Do, leasePort) }
		if change := tc.Rules; !slices.ContainsFunc(tc.Steps, about) {
			out = append(out, Case{tc.Name + ", no lease", func(r *iptables.Rules) {
				if change != nil {
					change(r)
				}
				withoutLease(r)
			}, tc.Steps})
		}
	}
	return out
}()

// QuarantineTable has the rows for backends that can quarantine devices.
var QuarantineTable = []Case{
	{"a quarantined device", withoutLease, []Step{
		{"install", ""},
		{"attach", ""},
		{"quarantine pod0", ""},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},
		{"prerouting pod0 udp pod:4000 > local:53", "tracked"},
		{"prerouting pod0 tcp[S] pod:4000 > vip:53", "tracked +exempt"},
		{"prerouting pod0 tcp[A] pod:4001 > vip:53", "tracked"},
		{"prerouting uplink2 udp pod2:4000 > vip:53", "untracked query"},
	}},
	{"a quarantined device, with a lease", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"quarantine pod0", ""},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},
		{"prerouting pod0 tcp[S] pod:4000 > vip:53", "tracked +exempt"},
	}},
}

// Cases are the rows.
var Cases = []Case{
	{"nothing is installed", nil, []Step{
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},
		{"output pod0 udp vip:53 > pod:4000", "tracked"},
	}},
	{"installed: queries are tracked", nil, []Step{
		{"install", ""},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},
		{"output lo udp vip:4000 > vip:53", "tracked"},
		{"prerouting lo udp vip:4000 > vip:53", "tracked"},
	}},
	{"installed: connections that begin are noted", nil, []Step{
		{"install", ""},
		{"prerouting pod0 tcp[S] pod:4000 > vip:53", "tracked +exempt"},
		{"output lo tcp[S] vip:4000 > vip:53", "tracked +exempt"},
		{"prerouting pod0 tcp[A] pod:4001 > vip:53", "tracked"},
		{"prerouting pod0 tcp[SA] pod:4002 > vip:53", "tracked"},
		{"attach", ""},
		{"prerouting pod0 tcp[A] pod:4000 > vip:53", "tracked +exempt"},
		{"output lo tcp[A] vip:4000 > vip:53", "tracked +exempt"},
		{"prerouting pod0 tcp[A] pod:4001 > vip:53", "untracked query"},
	}},
	{"installed: late responses are untracked", nil, []Step{
		{"install", ""},
		{"output pod0 udp vip:53 > pod:4000", "untracked response"},
		{"output pod0 tcp[A] vip:53 > pod:4000", "untracked response +held"},
		{"output lo udp local:53 > vip:4000", "untracked response"},
		{"prerouting lo udp vip:53 > vip:4000", "untracked"},
	}},
	{"installed: packets to other endpoints are not touched", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"prerouting pod0 udp pod:4000 > vip:54", "tracked"},
		{"prerouting pod0 udp pod:4000 > other:53", "tracked"},
		{"prerouting pod0 udp pod:53 > other:4000", "tracked"},
		{"output pod0 udp vip:54 > pod:4000", "tracked"},
		{"output pod0 udp other:53 > pod:4000", "tracked"},
		{"prerouting pod0 udp pod:4000 > local:8080", "tracked"},
	}},
	{"attached until detached", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"prerouting pod0 udp pod:4000 > vip:53", "untracked query"},
		{"prerouting pod0 tcp[S] pod:4000 > vip:53", "untracked query"},
		{"prerouting pod0 tcp[A] pod:4000 > vip:53", "untracked query"},
		{"prerouting pod0 udp pod:4000 > local:53", "untracked query"},
		{"prerouting lo udp vip:4000 > vip:53", "untracked query"},
		{"output lo udp vip:4000 > vip:53", "untracked"},
		{"output lo tcp[S] vip:4000 > vip:53", "untracked"},
		{"output pod0 udp vip:53 > pod:4000", "untracked response"},
		{"prerouting lo udp vip:53 > vip:4000", "untracked"},
		{"detach", ""},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},
		{"prerouting pod0 udp pod:4000 > local:53", "tracked"},
		{"output lo udp vip:4000 > vip:53", "tracked"},
		{"output pod0 udp vip:53 > pod:4000", "untracked response"},
		{"output pod0 tcp[A] vip:53 > pod:4000", "untracked response +held"},
	}},
	{"an untracked service beside DNS", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"prerouting pod0 tcp[S] pod:4000 > local:8080", "untracked query"},
		{"output pod0 tcp[SA] local:8080 > pod:4000", "untracked response +opening"},
		{"prerouting lo tcp[A] local:8080 > local:4000", "untracked"},
	}},
	{"a connection through the drain, from a pod", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"prerouting pod0 tcp[S] pod:4000 > vip:53", "untracked query"},
		{"output pod0 tcp[SA] vip:53 > pod:4000", "untracked response +opening"},
		{"prerouting pod0 tcp[A] pod:4000 > vip:53", "untracked query"},
		{"output pod0 tcp[A] vip:53 > pod:4000", "untracked response +held"},
		{"detach", ""},
		{"prerouting pod0 tcp[A] pod:4000 > vip:53", "untracked query"},
		{"output pod0 tcp[A] vip:53 > pod:4000", "untracked response +held"},
		{"prerouting pod0 tcp[A] pod:4001 > vip:53", "tracked"},
		{"prerouting pod0 tcp[S] pod:4002 > vip:53", "tracked +exempt"},
	}},
	{"a connection through the drain, from the node", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"output lo tcp[S] vip:4000 > vip:53", "untracked"},
		{"output lo tcp[A] vip:53 > vip:4000", "untracked response +held"},
		{"detach", ""},
		{"output lo tcp[A] vip:4000 > vip:53", "untracked"},
		{"prerouting lo tcp[A] vip:4000 > vip:53", "untracked query"},
		{"output lo tcp[A] vip:4001 > vip:53", "tracked"},
	}},
	{"a handshake that ends in the drain", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"output pod0 tcp[SA] vip:53 > pod:4000", "untracked response +opening"},
		{"output lo tcp[SA] vip:53 > vip:4000", "untracked response +opening"},
		{"detach", ""},
		{"prerouting pod0 tcp[A] pod:4000 > vip:53", "untracked query"},
		{"output lo tcp[A] vip:4000 > vip:53", "untracked"},
		{"output pod0 tcp[A] vip:53 > pod:4000", "untracked response +held"},
	}},
	{"a connection that we end", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"output pod0 tcp[A] vip:53 > pod:4000", "untracked response +held"},
		{"output pod0 tcp[FA] vip:53 > pod:4000", "untracked response +closing -held"},
		{"prerouting pod0 tcp[FA] pod:4000 > vip:53", "untracked query"},
		{"output pod0 tcp[A] vip:53 > pod:4000", "untracked response"},
		{"output lo tcp[A] vip:53 > vip:4000", "untracked response +held"},
		{"output lo tcp[R] vip:53 > vip:4000", "untracked response +closing -held"},
		{"detach", ""},
		{"prerouting pod0 tcp[A] pod:4000 > vip:53", "untracked query"},
		{"output lo tcp[A] vip:4000 > vip:53", "untracked"},
		{"prerouting pod0 tcp[A] pod:4001 > vip:53", "tracked"},
	}},
	{"a connection that its client resets", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"output pod0 tcp[A] vip:53 > pod:4000", "untracked response +held"},
		{"prerouting pod0 tcp[FA] pod:4000 > vip:53", "untracked query"},
		{"prerouting pod0 tcp[R] pod:4000 > vip:53", "untracked query +closing -held"},
		{"output lo tcp[A] vip:53 > vip:4000", "untracked response +held"},
		{"output lo tcp[R] vip:4000 > vip:53", "untracked +closing -held"},
	}},
	{"the port of a connection that has ended", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"output pod0 tcp[A] vip:53 > pod:4000", "untracked response +held"},
		{"output pod0 tcp[FA] vip:53 > pod:4000", "untracked response +closing -held"},
		{"output pod0 tcp[SA] vip:53 > pod:4000", "untracked response +opening -closing"},
		{"output pod0 tcp[A] vip:53 > pod:4000", "untracked response +held"},
	}},
	{"a reset without a connection", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"output pod0 tcp[R] vip:53 > pod:4000", "untracked response"},
		{"prerouting pod0 tcp[R] pod:4000 > vip:53", "untracked query"},
	}},
	{"a connection from before the rules were repaired", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"detach pod:4000 > vip:53", ""},
		{"prerouting pod0 tcp[A] pod:4000 > vip:53", "untracked query"},
		{"prerouting pod0 tcp[A] pod:4001 > vip:53", "tracked"},
	}},
	{"connections that are tracked already", nil, []Step{
		{"install", ""},
		{"exempt pod:5000 > vip:53", ""},
		{"exempt vip:5001 > local:53", ""},
		{"attach", ""},
		{"prerouting pod0 tcp[A] pod:5000 > vip:53", "tracked +exempt"},
		{"output lo tcp[A] vip:5001 > local:53", "tracked +exempt"},
		{"prerouting pod0 tcp[A] pod:5000 > local:53", "untracked query"},
		{"prerouting pod0 udp pod:5000 > vip:53", "untracked query"},
		{"prerouting pod0 tcp[A] pod:5001 > vip:53", "untracked query"},
		{"detach", ""},
		{"prerouting pod0 tcp[A] pod:5000 > vip:53", "tracked +exempt"},
	}},
	{"a connection that another instance untracks", nil, []Step{
		{"install", ""},
		{"prerouting pod0 tcp[S] pod:4000 > vip:53", "tracked +exempt"},
		{"output lo tcp[S] vip:4000 > vip:53", "tracked +exempt"},
		{"output pod0 tcp[SA] vip:53 > pod:4000", "untracked response +opening -exempt"},
		{"output lo tcp[SA] vip:53 > vip:4000", "untracked response +opening -exempt"},
		{"attach", ""},
		{"prerouting pod0 tcp[A] pod:4000 > vip:53", "untracked query"},
		{"output lo tcp[A] vip:4000 > vip:53", "untracked"},
		{"detach", ""},
		{"prerouting pod0 tcp[A] pod:4000 > vip:53", "untracked query"},
	}},
	{"only the answer to the lease probe renews", nil, []Step{
		{"install", ""},
		{"output lo udp vip:42000 > vip:53", "untracked"},
		{"prerouting lo udp vip:42000 > vip:53", "untracked"},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},

		// Similar packets of a pod and of the node.
		{"prerouting pod0 udp vip:53 > vip:42000", "untracked"},
		{"prerouting lo udp vip:53 > vip:42000", "untracked"},
		{"output lo udp vip:53 > vip:42001", "untracked response"},
		{"output lo udp vip:53 > local:42000", "untracked"},
		{"output lo tcp[A] vip:53 > vip:42000", "untracked response +held"},
		{"output pod0 udp vip:53 > pod:42000", "untracked response"},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},

		{"output lo udp vip:53 > vip:42000", "untracked +live"},
		{"prerouting pod0 udp pod:4000 > vip:53", "untracked query"},
		{"prerouting pod0 udp pod:4000 > local:53", "tracked"},
		{"output lo udp vip:53 > vip:42000", "untracked +live"},
		{"output lo udp local:53 > local:42000", "untracked +live"},
		{"prerouting pod0 udp pod:4000 > local:53", "untracked query"},
	}},
	{"nothing renews after a detach", nil, []Step{
		{"install", ""},
		{"output lo udp vip:53 > vip:42000", "untracked +live"},
		{"detach", ""},
		{"output lo udp vip:53 > vip:42000", "untracked"},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},
		{"install", ""},
		{"output lo udp vip:53 > vip:42000", "untracked +live"},
	}},
	{"nothing renews without a lease", withoutLease, []Step{
		{"install", ""},
		{"output lo udp vip:53 > vip:42000", "untracked"},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},
	}},
	{"a lease that runs out", func(r *iptables.Rules) { r.Plan.Lease = Short }, []Step{
		{"install", ""},
		{"output lo udp vip:53 > vip:42000", "untracked +live"},
		{"expire", ""},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},
		{"output lo udp vip:4000 > vip:53", "tracked"},
		{"output pod0 udp vip:53 > pod:4000", "untracked response"},
		{"prerouting pod0 tcp[S] pod:4000 > vip:53", "tracked +exempt"},
		{"output lo udp vip:53 > vip:42000", "untracked +live"},
	}},
	{"a lease that is ended", nil, []Step{
		{"install", ""},
		{"output lo udp vip:53 > vip:42000", "untracked +live"},
		{"output lo udp local:53 > local:42000", "untracked +live"},
		{"end vip", ""},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},
		{"prerouting pod0 udp pod:4000 > local:53", "untracked query"},
		{"end vip", ""}, // a second time changes nothing
		{"output lo udp vip:53 > vip:42000", "untracked +live"},
		{"prerouting pod0 udp pod:4000 > vip:53", "untracked query"},
	}},
	{"a lease that runs out tracks held connections, a detach does not", func(r *iptables.Rules) { r.Plan.Lease = Short }, []Step{
		{"install", ""},
		{"output lo udp vip:53 > vip:42000", "untracked +live"},
		{"output pod0 tcp[A] vip:53 > pod:4000", "untracked response +held"},
		{"expire", ""},
		{"prerouting pod0 tcp[A] pod:4000 > vip:53", "tracked"},
		{"detach", ""},
		{"prerouting pod0 tcp[A] pod:4000 > vip:53", "untracked query"},
	}},
	{"checks are untracked in every state", nil, []Step{
		{"install", ""},
		{"output lo udp vip:41000 > vip:53", "untracked"},
		{"prerouting lo udp vip:41000 > vip:53", "untracked"},
		{"output lo udp vip:53 > vip:41000", "untracked"},
		{"prerouting lo udp vip:53 > vip:41000", "untracked"},
		{"output lo tcp[S] vip:41001 > vip:53", "untracked"},
		{"prerouting lo tcp[S] vip:41001 > vip:53", "untracked"},
		{"output lo tcp[SA] vip:53 > vip:41001", "untracked"},
		{"attach", ""},
		{"output lo udp vip:41000 > vip:53", "untracked"},
		{"prerouting lo udp vip:41000 > vip:53", "untracked"},
	}},
	{"other queries are no checks", nil, []Step{
		{"install", ""},
		{"prerouting pod0 udp vip:41000 > vip:53", "tracked"},
		{"output lo udp vip:41001 > vip:53", "tracked"},
		{"output lo udp vip:41000 > other:53", "tracked"},
		{"prerouting lo udp vip:41000 > other:53", "tracked"},
	}},
	{"an uplink: tracked, or dropped if no Service owns the address", nil, []Step{
		{"install", ""},
		{"prerouting uplink udp outside:4000 > vip:53", "tracked"},
		{"prerouting uplink udp outside:4000 > local:53", "dropped"},
		{"attach", ""},
		{"prerouting uplink udp outside:4000 > vip:53", "tracked"},
		{"prerouting uplink tcp[S] outside:4000 > vip:53", "tracked"},
		{"prerouting uplink udp outside:4000 > local:53", "dropped"},
		{"prerouting uplink tcp[S] outside:4000 > local:53", "dropped"},
		{"prerouting uplink tcp[S] outside:4000 > local:8080", "dropped"},
		{"prerouting uplink udp pod:4000 > vip:53", "tracked"},
		{"prerouting uplink udp outside:4000 > local:54", "tracked"},
		{"prerouting uplink2 udp outside:4000 > vip:53", "untracked query"},
		{"prerouting pod0 udp outside:4000 > local:53", "untracked query"},
	}},
	{"an uplink with sources behind it", func(r *iptables.Rules) {
		r.Plan.Sources = []netip.Prefix{
			netip.MustParsePrefix(Name(iptables.IPv4, "pods")), netip.MustParsePrefix(Name(iptables.IPv6, "pods")),
		}
	}, []Step{
		{"install", ""},
		{"attach", ""},
		{"prerouting uplink udp pod:4000 > vip:53", "untracked query"},
		{"prerouting uplink udp pod:4000 > local:53", "untracked query"},
		{"prerouting uplink udp outside:4000 > vip:53", "tracked"},
		{"prerouting uplink udp outside:4000 > local:53", "dropped"},
		{"prerouting uplink2 udp outside:4000 > vip:53", "untracked query"},
	}},
	{"sources any", func(r *iptables.Rules) { r.Plan.AnySource = true }, []Step{
		{"install", ""},
		{"attach", ""},
		{"prerouting uplink udp outside:4000 > vip:53", "untracked query"},
		{"prerouting uplink udp outside:4000 > local:53", "untracked query"},
	}},
	{"another uplink", func(r *iptables.Rules) { r.Uplinks = []string{"uplink2", "pod0"} }, []Step{
		{"install", ""},
		{"attach", ""},
		{"prerouting uplink2 udp outside:4000 > local:53", "dropped"},
		{"prerouting pod0 udp pod:4000 > local:53", "dropped"},
		{"prerouting uplink udp outside:4000 > local:53", "untracked query"},
	}},
	{"removed", nil, []Step{
		{"install", ""},
		{"attach", ""},
		{"remove", ""},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked"},
		{"output pod0 udp vip:53 > pod:4000", "tracked"},
	}},
	{"dry-run counts and untracks nothing", withDryRun, []Step{
		{"install", ""},
		{"attach", ""},
		{"prerouting pod0 udp pod:4000 > vip:53", "tracked query"},
		{"prerouting pod0 tcp[S] pod:4000 > vip:53", "tracked query"},
		{"prerouting pod0 udp pod:4000 > local:53", "tracked query"},
		{"prerouting pod0 udp pod:4000 > vip:54", "tracked"},
		{"output pod0 udp vip:53 > pod:4000", "tracked"},
	}},
	{"dry-run counts the node's own queries once", withDryRun, []Step{
		{"install", ""},
		{"output lo udp vip:4000 > vip:53", "tracked query"},
		{"prerouting lo udp vip:4000 > vip:53", "tracked"},
		{"output lo udp local:4000 > local:53", "tracked query"},
		{"prerouting lo udp local:4000 > local:53", "tracked"},
	}},
	{"dry-run: our checks bypass kube-proxy, and are not counted", withDryRun, []Step{
		{"install", ""},
		{"output lo udp vip:41000 > vip:53", "untracked"},
		{"output lo udp vip:53 > vip:41000", "untracked"},
		{"output lo tcp[S] vip:41001 > vip:53", "untracked"},
		{"prerouting pod0 udp vip:41000 > vip:53", "tracked query"},
	}},
	{"dry-run counts only what would be untracked", withDryRun, []Step{
		{"install", ""},
		{"prerouting uplink udp outside:4000 > vip:53", "tracked"},
		{"prerouting uplink udp outside:4000 > local:53", "tracked"},
		{"prerouting uplink2 udp outside:4000 > local:53", "tracked query"},
	}},
}
