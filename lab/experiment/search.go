package experiment

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/internal/figure"
	"github.com/trackless-dns/trackless/lab"
)

// A Search measures what lookups of new external names cost along the search path of a pod, with
// each of the three ways to answer them. The zero Search looks up 1,000 names.
type Search struct {
	Names int // each is looked up once, with each of the ways
	Node  lab.Options

	// Progress, if not nil, is called several times a second.
	Progress func(Progress)
}

const (
	// searchNames is the default number of names.
	searchNames = 1000
	// MinSearchNames is from how many names on a cut is worth the queries that learn it.
	MinSearchNames = 500
)

// upstreamDelay is how long kube-dns takes to answer.
const upstreamDelay = 5 * time.Millisecond

// searchDomains is the search path of a pod in the namespace default, and the root.
var searchDomains = []string{"default.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""}

// searchWays are the names of the ways, and the directives for the zone of the cluster.
var searchWays = []struct{ name, directives string }{
	{"today", "cache {\n        denial 9984 5\n        nxdomain type\n    }"},
	{"cut", "cache {\n        denial 9984 5\n        nxdomain learn cluster.local\n    }"},
	{"one_pass", "searchpath cluster.local\n    cache {\n        denial 9984 5\n        nxdomain learn cluster.local\n    }"},
}

// Run makes the experiment. An error means that it could not be made; whether the promises held is
// in the report.
func (s Search) Run(ctx context.Context) (report *SearchReport, err error) {
	if s.Names == 0 {
		s.Names = searchNames
	}
	s.Node.WithoutKubeDNS = true
	s.step("node", "building a node", 0, 0)
	node, err := lab.NewNode(ctx, s.Node)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	upstream, err := startExternal(node)
	if err != nil {
		return nil, err
	}
	defer upstream.stop()
	report = &SearchReport{
		Scenario: SearchPath, Names: s.Names, Pods: len(node.Pods),
		SearchDomains: len(searchDomains) - 1, UpstreamDelay: upstreamDelay.Microseconds(),
	}
	for i, way := range searchWays {
		measured, err := s.measure(ctx, node, upstream, i)
		if err != nil {
			return nil, fmt.Errorf("look names up, %s: %w", way.name, err)
		}
		report.Ways = append(report.Ways, measured)
	}
	report.judge()
	return report, nil
}

func (s Search) step(phase, text string, done, of int) {
	if s.Progress != nil {
		s.Progress(Progress{Phase: phase, Step: text, Done: done, Of: of})
	}
}

// measure looks the names up with one of the ways, from all pods at once.
func (s Search) measure(ctx context.Context, node *lab.Node, upstream *external, number int) (Way, error) {
	way := Way{Name: searchWays[number].name}
	s.step(way.Name, "starting trackless", 0, 0)
	cache, err := node.ServeAttached(ctx, searchCorefile(node, searchWays[number].directives), serveMetrics)
	if err != nil {
		return way, err
	}
	upstream.queries.Store(0)
	upstream.bypassed.Store(0)
	begin := time.Now()
	var mu sync.Mutex
	var times []time.Duration
	var failure error
	var pods sync.WaitGroup
	for p, pod := range node.Pods {
		pods.Go(func() {
			for n := p; n < s.Names; n += len(node.Pods) {
				l, err := lookUp(ctx, pod.Namespace, lab.ClusterDNS4, fmt.Sprintf("w%d-n%d.example.com.", number, n))
				mu.Lock()
				if err != nil {
					failure = errors.Join(failure, err)
				}
				stop := failure != nil
				way.Lookups++
				way.ClientQueries += l.queries
				if l.found {
					way.Found++
					times = append(times, l.first)
				}
				s.step(way.Name, "looking names up", way.Lookups, s.Names)
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	pods.Wait()
	if failure != nil {
		return way, failure
	}
	way.DurationMS = time.Since(begin).Milliseconds()
	// The last queries to learn a cut may be under way, and are to be counted.
	if err := cache.Close(); err != nil {
		return way, err
	}
	way.UpstreamQueries, way.BypassedQueries = int(upstream.queries.Load()), int(upstream.bypassed.Load())
	way.ClientPerName, way.UpstreamPerName = perName(way.ClientQueries, way.Lookups), perName(way.UpstreamQueries, way.Lookups)
	if slices.Sort(times); len(times) > 0 {
		way.P50, way.P99 = times[len(times)/2].Microseconds(), times[len(times)*99/100].Microseconds()
	}
	return way, nil
}

func perName(queries, names int) float64 {
	return math.Round(float64(queries)/float64(max(names, 1))*100) / 100
}

// searchCorefile has a server block for the zone of the cluster, with the directives, and one for all
// other names.
func searchCorefile(node *lab.Node, directives string) string {
	listen := figure.Joined(append([]netip.Addr{lab.LinkLocalDNS4}, node.ClusterDNS()...))
	common := fmt.Sprintf(`    errors
    bind %s
    notrack {
        untrack %s
        lease 5s
    }
    forward . %s
`, listen, serveMetrics, lab.UpstreamDNS4)
	return fmt.Sprintf("cluster.local:53 {\n%[1]s    %[2]s\n}\n.:53 {\n%[1]s    cache 30\n    prometheus %[3]s\n}\n", common, directives, serveMetrics)
}
