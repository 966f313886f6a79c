package main

import (
	// Each of these registers one directive.
	_ "github.com/coredns/coredns/plugin/acl"
	_ "github.com/coredns/coredns/plugin/any"
	_ "github.com/coredns/coredns/plugin/autopath"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/bufsize"
	_ "github.com/coredns/coredns/plugin/cancel"
	_ "github.com/coredns/coredns/plugin/debug"
	_ "github.com/coredns/coredns/plugin/dns64"
	_ "github.com/coredns/coredns/plugin/dnstap"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/file"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/grpc"
	_ "github.com/coredns/coredns/plugin/header"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/local"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metadata"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/minimal"
	_ "github.com/coredns/coredns/plugin/multisocket"
	_ "github.com/coredns/coredns/plugin/nsid"
	_ "github.com/coredns/coredns/plugin/pprof"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/template"
	_ "github.com/coredns/coredns/plugin/timeouts"
	_ "github.com/coredns/coredns/plugin/transfer"
	_ "github.com/coredns/coredns/plugin/whoami"

	"github.com/trackless-dns/trackless/iptables/control"
	"github.com/trackless-dns/trackless/plugin/cache"
	"github.com/trackless-dns/trackless/plugin/cache/metrics"
	"github.com/trackless-dns/trackless/plugin/fairness"
	"github.com/trackless-dns/trackless/plugin/fastpath"
	"github.com/trackless-dns/trackless/plugin/notrack"
	"github.com/trackless-dns/trackless/plugin/podmetrics"
	"github.com/trackless-dns/trackless/plugin/searchpath"
	"github.com/trackless-dns/trackless/plugin/upstream"
)

// directives is the plugin list of `trackless serve` in the order in which a
// query meets the plugins: CoreDNS's own order, less what is not compiled in.
// kubernetes and trace stay out, since they bring client-go and a tracing SDK.
var directives = []string{
	"metadata",
	"cancel",
	"timeouts",
	"multisocket",
	"reload",
	"nsid",
	"bufsize",
	"bind",
	"notrack", // before ready, health, prometheus: addresses exist before anything listens on them
	"debug",
	"ready",
	"health",
	"pprof",
	"prometheus",
	"podmetrics",
	"errors",
	"log",
	"dnstap",
	"local",
	"dns64",
	"any",
	"loadbalance",
	"rewrite",
	"autopath",
	"acl",
	"searchpath", // above the cache, which has the denials of a search path
	"fastpath",
	"cache",
	// notrack_checkpoint: the second handler of notrack, see init
	"fairness", // below the cache: what it can answer waits for nobody
	"header",
	"minimal",
	"template",
	"transfer",
	"hosts",
	"file",
	"loop",
	"forward",
	"upstream",
	"grpc",
	"whoami",
}

// A block with notrack has a handler of it here as well: what reaches it is a miss, or
// a check that came through the cache. Fast paths need a cache that has started.
func init() {
	notrack.CheckpointBelow("cache")
	fastpath.StartAfter("cache")
	notrack.HandOver(cache.Handed, upstream.Handed)
	notrack.KeepNames(cache.Handed)
	notrack.SucceedAfter(directives[len(directives)-1])
}

// Who floods is named by its pod, where the pods are known.
func init() { fairness.NameBy(podmetrics.PodAt) }

// Metrics by pod have the queries that notrack and fast paths count.
func init() { podmetrics.CountQueries(notrack.QueriesByClient()) }

// The control socket tells how many queries are those of search paths.
func init() {
	notrack.CountSearch(func() (f control.SearchFigures) {
		f.Queries, f.Search, f.Cut = metrics.Search()
		f.OnePass = searchpath.Saved()
		return f
	})
}
