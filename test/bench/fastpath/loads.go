package main

import (
	"net/netip"
	"time"

	"github.com/trackless-dns/trackless/lab"
	"github.com/trackless-dns/trackless/test/bench/fastpath/generator"
)

// names is how many different names are asked, as on a busy node.
const names = 10_000

// otherPort is where packets go that are no DNS: to an echo on the node.
const otherPort = 5300

// client is a generator in a pod, on a CPU.
type client struct {
	pod, cpu int
	dnsperf  bool // is the generator
	options  generator.Options
}

// load is a row of the table of loads.
type load struct {
	name    string
	servers []string
	clients []client

	// hits tells that all names are cached.
	hits bool

	// fresh asks for other names in each sample, which nobody has asked for before.
	fresh bool

	// program measures the time in the kernel's program, which takes some itself.
	program bool
}

// all are the servers on one CPU.
var all = []string{kernelOn, socketsOn, kernelOff, coredns, unbound, dnsdist, udpEcho}

// saturating is as many queries as a client can ask: bursts of 12, as resolvers with
// search domains send them, from 16 sockets.
var saturating = generator.Options{Server: dns, Names: names, Last: time.Second, Burst: 12, Sockets: 16}

var (
	dns   = netip.AddrPortFrom(address, lab.DNSPort)
	other = netip.AddrPortFrom(netip.MustParseAddr("10.244.0.1"), otherPort)
)

// Names of the loads.
const (
	bursts        = "bursts"
	saturated     = "saturated by dnsperf"
	atRate        = "20000 qps"
	misses        = "misses"
	twoPods       = "two pods"
	programHits   = "program: hits"
	programMisses = "program: misses"
	programOthers = "program: other packets"
)

// loads is the table of all that is played.
var loads = []load{
	{name: bursts, servers: all, hits: true, clients: []client{{cpu: clientCPU, options: saturating}}},
	{name: saturated, servers: all, hits: true, clients: []client{{cpu: clientCPU, dnsperf: true, options: generator.Options{
		Server: dns, Names: names, Last: time.Second,
	}}}},
	{name: atRate, servers: all, hits: true, clients: []client{{cpu: clientCPU, options: generator.Options{
		Server: dns, Names: names, Last: 2 * time.Second, Rate: 20_000,
	}}}},
	{name: misses, servers: []string{socketsOn, kernelOff}, fresh: true, clients: []client{{cpu: clientCPU, options: generator.Options{
		Server: dns, First: 10 * names, Names: 3 * names, Last: time.Second, Burst: 12, Sockets: 2, Any: true,
	}}}},
	{name: twoPods, servers: []string{kernelOn, dnsdistTwo}, hits: true, clients: []client{
		{pod: 0, cpu: serverCPU, options: saturating},
		{pod: 1, cpu: clientCPU, options: saturating},
	}},
	{name: programHits, servers: []string{kernelOn}, hits: true, program: true, clients: []client{{cpu: clientCPU, options: saturating}}},
	{name: programMisses, servers: []string{kernelOn}, program: true, fresh: true, clients: []client{{cpu: clientCPU, options: generator.Options{
		Server: dns, First: 10 * names, Names: 3 * names, Last: time.Second, Burst: 12, Sockets: 2, Any: true,
	}}}},
	{name: programOthers, servers: []string{kernelOn}, program: true, clients: []client{{cpu: clientCPU, options: generator.Options{
		Server: other, Names: names, Last: time.Second, Burst: 12, Sockets: 16, Any: true,
	}}}},
}

func loadNames() []string {
	var names []string
	for _, l := range loads {
		names = append(names, l.name)
	}
	return names
}

// inSample is the client's load in the n-th sample.
func (l load) inSample(c client, n int) generator.Options {
	o := c.options
	if l.fresh {
		o.First += n * o.Names
	}
	return o
}
