package main

// rows are the dashboard, from top to bottom: what a person who was woken up looks
// at first comes first. $__rate_interval is Grafana's: four scrapes or a pixel,
// whichever is longer.
var rows = []row{
	{"In short", []panel{
		{
			title: "Addresses untracked", kind: stat, width: 4, unit: "percentunit", max: 1, limits: []limit{{"red", 0}, {"green", 1}},
			description: "Of all listen addresses of all nodes. Below 100 %: docs/runbooks/TracklessNotAttached.md.",
			queries:     []query{{`avg(coredns_notrack_attached{instance=~"$instance"})`, ""}},
		},
		{
			title: "Conntrack entries avoided", kind: stat, width: 5, unit: unitCount,
			description: "What `conntrack -L` would show in addition, had DNS been tracked.",
			queries:     []query{{`sum(coredns_notrack_entries_avoided{instance=~"$instance"})`, ""}},
		},
		{
			title: "Fullest table", kind: stat, width: 5, unit: "percentunit", max: 1, limits: tableLimits,
			queries: []query{{tableUsed("max"), ""}},
		},
		{
			title: "Answered from the cache", kind: stat, width: 5, unit: "percentunit", max: 1,
			description: "Of what was asked of the cache. The checks of the directive notrack are asked of it, too, and are misses: on an idle node this is low.",
			queries: []query{{`sum(rate(coredns_cache_hits_total{instance=~"$instance"}[$__rate_interval]))
  / sum(rate(coredns_cache_requests_total{instance=~"$instance"}[$__rate_interval]))`, ""}},
		},
		{
			title: "Failed answers", kind: stat, width: 5, unit: "percentunit", max: 1, limits: []limit{{"green", 0}, {"orange", 0.01}, {"red", 0.05}},
			description: "SERVFAIL and REFUSED, of all answers.",
			queries: []query{{`(sum(rate(coredns_dns_responses_total{instance=~"$instance", rcode=~"SERVFAIL|REFUSED"}[$__rate_interval])) or vector(0))
  / sum(` + answers + `)`, ""}},
		},
	}},
	{"Savings", []panel{
		{
			title: "Conntrack entries, and those avoided", width: 12, unit: unitCount, stack: true,
			description: "The sum is what the tables would hold without Trackless.",
			queries: []query{
				{`sum(coredns_conntrack_entries{instance=~"$instance"})`, "in the tables"},
				{`sum(coredns_notrack_entries_avoided{instance=~"$instance"})`, "avoided"},
			},
		},
		{
			title: "Entries avoided", width: 6, unit: unitCount, stack: true,
			queries: []query{{`sum by (proto, family) (coredns_notrack_entries_avoided{instance=~"$instance"})`, "{{proto}} {{family}}"}},
		},
		{
			title: "Flows avoided", width: 6, unit: unitPerSecond, stack: true,
			description: "Entries that were not made.",
			queries:     []query{{`sum by (proto, family) (` + rate("coredns_notrack_flows_avoided_total") + `)`, "{{proto}} {{family}}"}},
		},
	}},
	{"Connection tracking", []panel{
		{
			title: "Tables", width: 8, unit: "percentunit", max: 1, limits: tableLimits,
			description: "Entries against nf_conntrack_max. Full at 100 %: docs/runbooks/ConntrackTableFull.md.",
			queries:     []query{{tableUsed(""), "{{instance}}"}},
		},
		{
			title: "What the kernel loses", width: 8, unit: unitPerSecond,
			description: "drop: no entry could be made, for want of room or memory. The kernel's counter includes insert_failed, which is taken off here. early_drop: evicted to make room. insert_failed: another entry has the same tuple; what that means on this kernel: docs/conntrack.md. chain_toolong: no room in the hash bucket.",
			queries: []query{
				{`sum by (instance) (clamp_min(` + rate("coredns_conntrack_drop_total") + ` - ` + rate("coredns_conntrack_insert_failed_total") + `, 0))`, "drop {{instance}}"},
				{`sum by (instance) (` + rate("coredns_conntrack_early_drop_total") + `)`, "early_drop {{instance}}"},
				{`sum by (instance) (` + rate("coredns_conntrack_insert_failed_total") + `)`, "insert_failed {{instance}}"},
				{`sum by (instance) (` + rate("coredns_conntrack_chain_toolong_total") + `)`, "chain_toolong {{instance}}"},
			},
		},
		{
			title: "DNS in the tables all the same", width: 8, unit: unitCount,
			description: "client: to a listen address, while not attached. upstream: from us. bypass: from the node and its pods to other servers.",
			queries:     []query{{`sum by (role) (coredns_conntrack_dns_entries{instance=~"$instance"})`, "{{role}}"}},
		},
	}},
	{"Pods", []panel{
		{
			title: "Queries by pod", width: 8, unit: "reqps", stack: true,
			description: "The pods of each node that ask most. (node) is the node itself, (rest) all other pods. Empty without the directive podmetrics (metrics.byPod of the chart).",
			queries:     []query{{`topk(20, sum by (pod_namespace, pod_name) (` + rate("coredns_podmetrics_queries_total") + `))`, "{{pod_namespace}} {{pod_name}}"}},
		},
		{
			title: "Entries by pod", width: 8, unit: unitCount, stack: true,
			description: "The pods with the most entries of each node. (node) is the node itself, (rest) all other pods. Empty without the directive podmetrics (metrics.byPod of the chart).",
			queries:     []query{{`topk(20, sum by (pod_namespace, pod_name) (coredns_conntrack_pod_entries{instance=~"$instance"}))`, "{{pod_namespace}} {{pod_name}}"}},
		},
		{
			title: "DNS entries by pod", width: 8, unit: unitCount, stack: true,
			description: "Of the same pods. Pods that ask Trackless have none: these ask others, or asked while an address was not attached.",
			queries:     []query{{`topk(20, sum by (pod_namespace, pod_name) (coredns_conntrack_pod_dns_entries{instance=~"$instance"}))`, "{{pod_namespace}} {{pod_name}}"}},
		},
	}},
	{"Rules", []panel{
		{
			title: "Addresses not attached", width: 8, unit: unitCount,
			description: "By node. DNS to them is tracked, and answered by the cluster's DNS.",
			queries:     []query{{`sum by (instance) (1 - coredns_notrack_attached{instance=~"$instance"})`, "{{instance}}"}},
		},
		{
			title: "Lease lapses and repairs", width: 8, unit: unitCount, bars: true,
			description: "Lapses: too slow to answer. Overloads: queries given away, too many were lost to a CPU limit. Repairs: rules and addresses that others took away.",
			queries: []query{
				{`sum by (instance) (` + increase("coredns_notrack_lease_lapses_total") + `)`, "lapses {{instance}}"},
				{`sum by (instance) (` + increase("coredns_notrack_overloads_total") + `)`, "overloads {{instance}}"},
				{`sum by (instance, reason) (` + increase("coredns_notrack_repairs_total") + `)`, "{{reason}} {{instance}}"},
			},
		},
		{
			title: "Packets untracked", width: 8, unit: "pps", stack: true,
			queries: []query{{`sum by (direction, proto, family) (` + rate("coredns_notrack_packets_total") + `)`, "{{direction}} {{proto}} {{family}}"}},
		},
	}},
	{"Answers", []panel{
		{
			title: "Queries", width: 8, unit: "reqps",
			queries: []query{{`sum by (instance) (` + rate("coredns_dns_requests_total") + `)`, "{{instance}}"}},
		},
		{
			title: "Answers by code", width: 8, unit: "reqps", stack: true,
			queries: []query{{`sum by (rcode) (` + answers + `)`, "{{rcode}}"}},
		},
		{
			title: "Time to answer", width: 8, unit: "s",
			queries: quantiles("coredns_dns_request_duration_seconds", ""),
		},
	}},
	{"Cache", []panel{
		{
			title: "Hits and misses", width: 6, unit: "reqps", stack: true,
			description: "Coalesced: misses that were answered with the upstream query of another client.",
			queries: []query{
				{`sum by (type) (` + rate("coredns_cache_hits_total") + `)`, "hits, {{type}}"},
				{`sum(` + rate("coredns_cache_misses_total") + `) - sum(` + rate("coredns_cache_coalesced_total") + `)`, "misses"},
				{`sum(` + rate("coredns_cache_coalesced_total") + `)`, "coalesced"},
			},
		},
		{
			title: "Search paths", width: 6, unit: "reqps",
			description: "Search path: queries for an external name below a domain of a pod's search path. Cut: queries that the denial of another question answered. One pass: replies for a whole search path.",
			queries: []query{
				{`sum(` + rate("coredns_cache_search_total") + `)`, "search path"},
				{`sum(` + rate("coredns_cache_cut_total") + `)`, "cut"},
				{`sum(` + rate("coredns_searchpath_answers_total") + `) or vector(0)`, "one pass"},
			},
		},
		{
			title: "Stale answers, evictions, prefetches", width: 6, unit: unitPerSecond,
			description: "Stale: given after their time because the upstream did not answer. Evictions: the cache is too small.",
			queries: []query{
				{`sum(` + rate("coredns_cache_served_stale_total") + `)`, "stale"},
				{`sum by (type) (` + rate("coredns_cache_evictions_total") + `)`, "evictions, {{type}}"},
				{`sum(` + rate("coredns_cache_prefetch_total") + `)`, "prefetches"},
			},
		},
		{
			title: "Cached", width: 6, unit: unitCount, stack: true,
			queries: []query{{`sum by (type) (coredns_cache_entries{instance=~"$instance"})`, "{{type}}"}},
		},
	}},
	{"Upstream", []panel{
		{
			title: "Queries by server and code", width: 8, unit: "reqps", stack: true,
			queries: []query{{`sum by (to, rcode) (` + rate("coredns_proxy_request_duration_seconds_count") + `)`, "{{to}} {{rcode}}"}},
		},
		{
			title: "Time to answer, by server", width: 8, unit: "s",
			queries: quantiles("coredns_proxy_request_duration_seconds", "to"),
		},
		{
			title: "Failures", width: 8, unit: unitPerSecond,
			description: "Failed checks of a server that did not answer; queries for which all servers were down; queries refused because too many waited; queries and connections beyond the share of their client.",
			queries: []query{
				{`sum by (to) (` + rate("coredns_proxy_healthcheck_failures_total") + `)`, "checks, {{to}}"},
				{`sum(` + rate("coredns_forward_healthcheck_broken_total") + `)`, "all down"},
				{`sum(` + rate("coredns_forward_max_concurrent_rejects_total") + `)`, "refused"},
				{`sum by (how) (` + rate("coredns_fairness_shed_total") + `)`, "beyond the share, {{how}}"},
			},
		},
	}},
	{"Instances", []panel{
		{
			title: "Versions and backends", width: 12, unit: unitCount, stack: true,
			queries: []query{
				{`count by (version) (coredns_trackless_build_info{instance=~"$instance"})`, "{{version}}"},
				{`count by (backend, reason) (coredns_notrack_backend_info{instance=~"$instance"})`, "{{backend}}: {{reason}}"},
			},
		},
		{
			title: "Processor time and memory", width: 12, unit: "percentunit",
			description: "Processor time of a CPU (left) and resident memory (right).",
			queries: []query{
				{`sum by (instance) (rate(process_cpu_seconds_total{instance=~"$instance"}[$__rate_interval]) and ignoring (version, goversion) coredns_trackless_build_info)`, "CPU {{instance}}"},
				{`sum by (instance) (process_resident_memory_bytes{instance=~"$instance"} and ignoring (version, goversion) coredns_trackless_build_info)`, memoryLegend + " {{instance}}"},
			},
		},
	}},
}

// The table at which the alerts fire.
var tableLimits = []limit{{"green", 0}, {"orange", 0.8}, {"red", 0.95}}

// answers are those a second. A query that is dropped, as by acl, has none, but
// counts as NOERROR by no plugin.
const answers = `rate(coredns_dns_responses_total{instance=~"$instance", plugin!=""}[$__rate_interval])
  or rate(coredns_dns_responses_total{instance=~"$instance", rcode!="NOERROR"}[$__rate_interval])`

func rate(metric string) string {
	return `rate(` + metric + `{instance=~"$instance"}[$__rate_interval])`
}

func increase(metric string) string {
	return `increase(` + metric + `{instance=~"$instance"}[$__rate_interval])`
}

// tableUsed is how full the tables are, aggregated unless that is empty. A
// limit of 0 is none.
func tableUsed(aggregate string) string {
	used := `coredns_conntrack_entries{instance=~"$instance"} / (coredns_conntrack_entries_limit{instance=~"$instance"} > 0)`
	if aggregate == "" {
		return used
	}
	return aggregate + "(" + used + ")"
}

// quantiles are those of a histogram, by a label unless that is empty.
func quantiles(histogram, by string) []query {
	labels, legend := "le", ""
	if by != "" {
		labels, legend = "le, "+by, " {{"+by+"}}"
	}
	var out []query
	for _, q := range []struct{ quantile, name string }{{"0.5", "p50"}, {"0.99", "p99"}} {
		out = append(out, query{
			`histogram_quantile(` + q.quantile + `, sum by (` + labels + `) (` + rate(histogram+"_bucket") + `))`, q.name + legend,
		})
	}
	return out
}
