package main

import (
	"fmt"
	"net/netip"

	"github.com/trackless-dns/trackless/lab"
	benched "github.com/trackless-dns/trackless/test/bench/server"
)

// Names of the servers.
const (
	kernelOn   = "trackless (kernel on)"
	kernelOff  = "trackless (kernel off)"
	socketsOn  = "trackless (sockets)"
	coredns    = "coredns"
	unbound    = "unbound"
	dnsdist    = "dnsdist"
	dnsdistTwo = "dnsdist (two listeners)"
	udpEcho    = "udp echo"
)

// programs are the files that are run.
type programs struct{ self, trackless, coredns, unbound, dnsdist, dnsperf string }

// entry is a row of the table of servers.
type entry struct {
	name string

	// command and configuration start it, as in a server's Spec.
	command       func(p programs) string
	configuration string

	// cpus are those that it may run on.
	cpus string

	// fast tells that hits must be answered by a fast path.
	fast bool

	trackless bool // with notrack, which has addresses of its own
	abrupt    bool // it dies of SIGTERM
	by        lab.Responder
}

const (
	serverCPU = 0
	clientCPU = 1
	bothCPUs  = "0,1"
)

var (
	address  = lab.ClusterDNS4
	upstream = netip.MustParseAddr("10.244.0.53") // kube-dns of the lab
)

// servers is the table of all that are measured. Another way to answer is a row here,
// a name in the loads, and its bars.
var servers = []entry{
	{name: kernelOn, command: ourselves, configuration: corefile("    notrack\n    fastpath {\n        kernel on\n        sockets off\n    }\n"), trackless: true, fast: true, by: lab.Trackless},
	{name: kernelOff, command: ourselves, configuration: corefile("    notrack\n    fastpath {\n        sockets off\n    }\n"), trackless: true, by: lab.Trackless},
	{name: socketsOn, command: ourselves, configuration: corefile("    notrack\n    fastpath\n"), trackless: true, fast: true, by: lab.Trackless},
	{name: coredns, command: func(p programs) string { return p.coredns + ` -conf "$3" -quiet` }, configuration: corefile(""), by: lab.Trackless},
	{name: unbound, command: func(p programs) string { return p.unbound + ` -d -c "$3"` }, configuration: unboundConf, by: lab.Trackless},
	{name: dnsdist, command: dnsdistCommand, configuration: dnsdistConf(1), abrupt: true, by: lab.Trackless},
	{name: dnsdistTwo, command: dnsdistCommand, configuration: dnsdistConf(2), cpus: bothCPUs, abrupt: true, by: lab.Trackless},
	{name: udpEcho, command: func(p programs) string {
		return fmt.Sprintf("%s %s %s", p.self, verbEcho, netip.AddrPortFrom(address, lab.DNSPort))
	}, by: lab.Nobody},
}

func serverNames() []string {
	var names []string
	for _, e := range servers {
		names = append(names, e.name)
	}
	return names
}

func ourselves(p programs) string      { return p.trackless + ` "$@"` }
func dnsdistCommand(p programs) string { return p.dnsdist + ` --supervised --disable-syslog -C "$3"` }

// spec says how the row's server is started. The node has no rules of netfilter but
// those of Trackless itself, which is in favour of the peers.
func (e entry) spec(p programs) benched.Spec {
	cpus := e.cpus
	if cpus == "" {
		cpus = fmt.Sprint(serverCPU)
	}
	return benched.Spec{
		Name:          e.name,
		Node:          lab.Options{Program: p.trackless, Pods: 2, WithoutIPv6: true, WithoutKubeProxy: true},
		Command:       fmt.Sprintf("taskset -c %s %s", cpus, e.command(p)),
		Configuration: e.configuration,
		Listen:        []netip.Addr{address},
		By:            e.by,
		Attaches:      e.trackless,
		Addressed:     !e.trackless,
		Abrupt:        e.abrupt,
	}
}

// corefile is the same for Trackless and CoreDNS but for the directives. The capacity
// that CoreDNS has by default is too small for the names. Misses are answered on the
// spot: responses of an upstream in a pod would pass the kernel's program, too.
func corefile(directives string) string {
	return fmt.Sprintf(`.:53 {
    errors
    bind %s
%s    cache {
        success 262144 3600
        denial 65536 3600
    }
    template IN A . {
        answer "{{ .Name }} 3000 IN A 192.0.2.1"
    }
    prometheus %s
}
`, address, directives, benched.Metrics)
}

var unboundConf = fmt.Sprintf(`server:
    interface: %s
    access-control: 0.0.0.0/0 allow
    username: ""
    chroot: ""
    directory: ""
    pidfile: ""
    do-daemonize: no
    use-syslog: no
    num-threads: 1
    so-rcvbuf: 4m
    module-config: "iterator"
    msg-cache-size: 128m
    rrset-cache-size: 256m
    minimal-responses: yes
forward-zone:
    name: "."
    forward-addr: %s
remote-control:
    control-enable: no
`, address, upstream)

func dnsdistConf(listeners int) string {
	text := fmt.Sprintf(`setLocal("%[1]s:53", {reusePort=true})
setACL("0.0.0.0/0")
setSecurityPollSuffix("")
newServer({address="%[2]s:53"}):setUp()
getPool(""):setCache(newPacketCache(500000, {maxTTL=3600, numberOfShards=20}))
`, address, upstream)
	for range listeners - 1 {
		text += fmt.Sprintf("addLocal(\"%s:53\", {reusePort=true})\n", address)
	}
	return text
}
