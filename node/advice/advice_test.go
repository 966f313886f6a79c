package advice

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/figure"
)

// quiet is a healthy node: no rule finds anything in it.
func quiet() *Measurements {
	return &Measurements{
		Entries: 20_000, Limit: 262_144, Buckets: 262_144, MemoryTotal: 16 << 30,
		Memory:   sysctl.Memory{EntryBytes: 256, ExtensionBytes: 128, BucketBytes: 8, Source: "slabinfo"},
		Interval: time.Second, Growth: 3,
		Settings: settings("nf_conntrack_tcp_timeout_established", 86400, "nf_conntrack_tcp_timeout_time_wait", 120),
		Table: &summary.Summary{
			Entries: 20_000,
			States:  []summary.StateCount{{Protocol: "tcp", State: "ESTABLISHED", Entries: 15_000}, {Protocol: "udp", State: "REPLIED", Entries: 5_000}},
			DNS:     summary.DNS{Entries: 900, UDP: 900},
		},
	}
}

func settings(pairs ...any) []sysctl.Setting {
	var list []sysctl.Setting
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, sysctl.Setting{Name: "net.netfilter." + pairs[i].(string), Value: uint64(pairs[i+1].(int))})
	}
	return list
}

func ptr[T any](v T) *T { return &v }

var (
	kubeDNS = netip.MustParseAddr("10.96.0.10")
	pod1    = netip.MustParseAddr("10.244.0.53")
	pod2    = netip.MustParseAddr("10.244.1.53")
)

// healthy are the answers of a server at which nothing is wrong.
func healthy() Answers {
	ok := Answer{Name: "kubernetes.default.svc.cluster.local.", Rcode: "NOERROR", Took: time.Millisecond}
	return Answers{
		Pod: "shop/cart", Server: kubeDNS, Search: []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local"}, NDots: 1, Pairs: 10,
		Inside: ok, InsideTCP: ok, Outside: Answer{Name: "example.org.", Rcode: "NOERROR", Took: 30 * time.Millisecond},
	}
}

func TestRules(t *testing.T) {
	provoked := map[string]bool{}
	for _, test := range []struct {
		name   string
		change func(*Measurements)
		id     string // of the one finding, "" for none
		worst  Severity
		says   []string
	}{
		{"a quiet node", func(*Measurements) {}, "", Info, nil},
		{"nothing measured", func(m *Measurements) { *m = Measurements{} }, "", Info, nil},

		{"79 % full", func(m *Measurements) { m.Entries = 207_000 }, "", Info, nil},
		{"80 % full", func(m *Measurements) { m.Entries = 210_000 }, "table-full", Warning, []string{"80 % full", "210,000 of 262,144", "524288", "MiB more when full"}},
		{"99 % full", func(m *Measurements) { m.Entries = 260_000 }, "table-full", Critical, []string{"evicted"}},
		{"full and no memory for more", func(m *Measurements) { m.Entries, m.MemoryTotal = 260_000, 1<<30 }, "table-full", Critical, []string{"more nodes"}},
		{"full of DNS", func(m *Measurements) { m.Entries, m.Table.Entries, m.Table.DNS.Entries = 210_000, 4000, 900 }, "table-full", Warning, []string{"22 % of the entries are DNS", "run Trackless"}},

		{"growing slowly", func(m *Measurements) { m.Growth = 60 }, "", Info, nil},
		{"full within the hour", func(m *Measurements) { m.Growth = 100 }, "table-filling", Warning, []string{"40m", "100 a second"}},
		{"full in minutes", func(m *Measurements) { m.Growth = 1000 }, "table-filling", Critical, []string{"4m2s"}},
		{"shrinking", func(m *Measurements) { m.Growth = -1000 }, "", Info, nil},
		{"a few in a small table", func(m *Measurements) { m.Limit, m.Buckets, m.Entries, m.Growth = 30_000, 30_000, 10, 3 }, "", Info, nil},

		{"drop rises", func(m *Measurements) { m.Rise.Drop, m.Total.Drop = 5, 12 }, "drop", Critical, []string{"drop rose by 5 in 1s, to 12"}},
		{"drop rose once", func(m *Measurements) { m.Total.Drop = 12 }, "drop", Warning, []string{"not now"}},
		{"early_drop rises", func(m *Measurements) { m.Rise.EarlyDrop, m.Total.EarlyDrop = 1, 1 }, "early-drop", Critical, []string{"early_drop rose"}},
		{"early_drop rose once", func(m *Measurements) { m.Total.EarlyDrop = 1 }, "early-drop", Warning, []string{"not now"}},
		{"insert_failed rises", func(m *Measurements) { m.Rise.InsertFailed, m.Total.InsertFailed, m.Total.ClashResolve = 1, 1, 7 }, "insert-failed", Warning, []string{"before Linux 5.10", "7 further races"}},
		{"insert_failed rises on Linux 6.18", func(m *Measurements) {
			m.Kernel, m.Rise.InsertFailed, m.Total.InsertFailed = [2]int{6, 18}, 1, 1
			m.Table.NAT.SNAT, m.Table.NAT.Both = 3, 4
		}, "insert-failed", Warning, []string{"lose nothing on this kernel", "masquerade gave two flows one port", "lead to the same server", "fully-random", "7 are under source NAT"}},
		{"insert_failed rises on Linux 5.9", func(m *Measurements) { m.Kernel, m.Rise.InsertFailed = [2]int{5, 9}, 1 }, "insert-failed", Warning, []string{"sent to different servers", "5 s", "single-request-reopen"}},
		{"insert_failed rises on Linux 4.18", func(m *Measurements) { m.Kernel, m.Rise.InsertFailed = [2]int{4, 18}, 1 }, "insert-failed", Warning, []string{"before Linux 4.19", "5 s"}},
		{"drop beside insert_failed", func(m *Measurements) {
			m.Rise.Drop, m.Total.Drop, m.Rise.InsertFailed, m.Total.InsertFailed = 5, 9, 2, 4
		}, "drop", Critical, []string{"drop rose by 3", "to 5", "4 in all"}},
		{"insert_failed in a full table", func(m *Measurements) {
			m.Entries, m.Rise.Drop, m.Total.Drop, m.Rise.InsertFailed, m.Total.InsertFailed = 262_000, 5, 5, 5, 5
		}, "drop", Critical, []string{"drop rose by 5"}},
		{"insert_failed rose once", func(m *Measurements) { m.Total.InsertFailed = 1 }, "insert-failed", Info, []string{"not now"}},
		{"chain_toolong rises", func(m *Measurements) { m.Rise.ChainTooLong, m.Total.ChainTooLong = 1, 1 }, "chain-toolong", Critical, nil},
		{"chain_toolong rose once", func(m *Measurements) { m.Total.ChainTooLong = 1 }, "chain-toolong", Warning, nil},

		{"log without a message", func(m *Measurements) { m.Log = &KernelLog{} }, "", Info, nil},
		{"log, a minute ago", func(m *Measurements) { m.Log = &KernelLog{TableFull: 4, LastAgo: time.Minute} }, "kernel-log", Critical, []string{"4 messages", "1m0s ago"}},
		{"log, yesterday", func(m *Measurements) { m.Log = &KernelLog{TableFull: 1, LastAgo: 24 * time.Hour} }, "kernel-log", Warning, nil},

		{"much DNS in an empty table", func(m *Measurements) { m.Table.DNS.Entries = 4_000 }, "dns-share", Info, []string{"20 % of the table is DNS", "saves about 4,000"}},
		{"much DNS in a crowded table", func(m *Measurements) { m.Entries, m.Table.DNS.Entries = 140_000, 10_000 }, "dns-share", Warning, []string{"50 %"}},
		{"DNS of a small table", func(m *Measurements) { m.Table.Entries, m.Table.DNS.Entries = 999, 999 }, "", Info, nil},
		{"search paths", func(m *Measurements) { m.Search = Search{Queries: 10_000, OnPath: 7_500, Cut: 7_000} }, "search-path", Info, []string{"75 %", "7,500 of 10,000", "onePass"}},
		{"search paths in one pass", func(m *Measurements) { m.Search = Search{Queries: 1_000, OnPath: 200, OnePass: 3} }, "search-path", Info, []string{"20 %", "nothing to do"}},
		{"few search paths", func(m *Measurements) { m.Search = Search{Queries: 1_000, OnPath: 199} }, "", Info, nil},
		{"search paths of few queries", func(m *Measurements) { m.Search = Search{Queries: 999, OnPath: 999} }, "", Info, nil},
		{"Trackless at work", func(m *Measurements) { m.Avoided = ptr(uint64(30_000)) }, "dns-share", Info, []string{"keeps 30,000 entries out", "50,000", "11.0 MiB"}},

		{"five days, idle", func(m *Measurements) {
			m.Settings = settings("nf_conntrack_tcp_timeout_established", 432000)
			m.Table.Established = summary.Established{Entries: 15_000, IdleHour: 4_000, IdleDay: 3_000}
		}, "idle-established", Info, []string{"4,000 of 15,000", "120h0m0s", "INVALID", "connection pools"}},
		{"five days, idle, crowded", func(m *Measurements) {
			m.Entries = 140_000
			m.Settings = settings("nf_conntrack_tcp_timeout_established", 432000)
			m.Table.Established = summary.Established{Entries: 15_000, IdleHour: 4_000, IdleDay: 3_000}
		}, "idle-established", Warning, nil},
		{"five days, busy", func(m *Measurements) {
			m.Settings = settings("nf_conntrack_tcp_timeout_established", 432000)
			m.Table.Established = summary.Established{Entries: 15_000, IdleHour: 100}
		}, "", Info, nil},
		{"one day, idle", func(m *Measurements) {
			m.Table.Established = summary.Established{Entries: 15_000, IdleHour: 15_000}
		}, "", Info, nil},
		{"ten minutes", func(m *Measurements) { m.Settings = settings("nf_conntrack_tcp_timeout_established", 600) }, "established-short", Warning, []string{"10m0s", "pool", "INVALID"}},
		{"two hours", func(m *Measurements) { m.Settings = settings("nf_conntrack_tcp_timeout_established", 7200) }, "", Info, nil},

		{"TIME_WAIT", func(m *Measurements) {
			m.Table.States = []summary.StateCount{{Protocol: "tcp", State: "TIME_WAIT", Entries: 7_000}}
		}, "time-wait", Info, []string{"35 %", "58 connections closed a second", "reuse connections"}},
		{"some TIME_WAIT", func(m *Measurements) {
			m.Table.States = []summary.StateCount{{Protocol: "tcp", State: "TIME_WAIT", Entries: 5_000}}
		}, "", Info, nil},

		{"few buckets now", func(m *Measurements) { m.Buckets = 8_192 }, "few-buckets", Warning, []string{"2.4 entries to a hash bucket", "hashsize=262144"}},
		{"few buckets at the limit", func(m *Measurements) { m.Buckets = 32_000 }, "few-buckets", Info, nil},
		{"kube-proxy's ratio", func(m *Measurements) { m.Buckets = 65_536 }, "", Info, nil},

		{"UDP flood", func(m *Measurements) {
			m.Table.UDPUnreplied = 10_000
			m.Table.UDPUnrepliedSources = []summary.Counted{{Address: pod1, Entries: 9_000}}
			m.Table.DestinationPorts = []summary.PortCount{{Protocol: "tcp", Port: 1, Entries: 1}, {Protocol: "udp", Port: 1900, Entries: 9_000}}
		}, "udp-unreplied", Warning, []string{"10.244.0.53 (9,000)", "1900 (9,000)"}},
		{"some UDP without answers", func(m *Measurements) { m.Table.UDPUnreplied = 9_000 }, "", Info, nil},

		{"one dead server of two", func(m *Measurements) {
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: pod1, Entries: 500, Unreplied: 3}, {Asked: kubeDNS, Address: pod2, Entries: 20, Unreplied: 20}}
		}, "dead-dns-endpoint", Warning, []string{"10.244.1.53 behind 10.96.0.10", "[10.244.0.53]", "conntrack -D -p udp --reply-src 10.244.1.53"}},
		{"all servers dead", func(m *Measurements) {
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: pod1, Entries: 500, Unreplied: 490}}
		}, "dead-dns-endpoint", Critical, []string{"no server of this Service answers"}},
		{"a slow server", func(m *Measurements) {
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: pod1, Entries: 500, Unreplied: 300}}
		}, "", Info, nil},
		{"too few to judge", func(m *Measurements) {
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: pod1, Entries: 9, Unreplied: 9}}
		}, "", Info, nil},

		{"the cache is tracked", func(m *Measurements) {
			m.Listeners = []netip.Addr{kubeDNS}
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: kubeDNS, Entries: 500, Unreplied: 3}}
		}, "notrack-missing", Warning, []string{"neither direction"}},
		{"a zone undoes the rules", func(m *Measurements) {
			m.Listeners, m.Notrack = []netip.Addr{kubeDNS}, []Notrack{{Address: kubeDNS, Queries: true, Responses: true, Zone: "chain c of table inet z (ct zone set)"}}
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: kubeDNS, Entries: 500, Unreplied: 3}}
		}, "notrack-missing", Warning, []string{"conntrack zone", "chain c of table inet z", "pass DNS to the address"}},
		{"the cache is passed by", func(m *Measurements) {
			m.Listeners = []netip.Addr{kubeDNS}
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: pod1, Entries: 500, Unreplied: 3}}
		}, "notrack-missing", Warning, []string{"pass the cache on this node by", "10.244.0.53"}},
		{"somebody else's server", func(m *Measurements) {
			m.Listeners = []netip.Addr{netip.MustParseAddr("169.254.20.10")}
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: kubeDNS, Entries: 500, Unreplied: 3}}
		}, "", Info, nil},
		{"answers tracked", func(m *Measurements) {
			m.Table.DNS.ReversedSources = []summary.Counted{{Address: kubeDNS, Entries: 4}}
		}, "notrack-one-sided", Critical, []string{"answers from 10.96.0.10 are tracked", "--orig-port-src 53"}},
		{"queries tracked", func(m *Measurements) {
			m.Listeners = []netip.Addr{kubeDNS}
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: kubeDNS, Entries: 50, Unreplied: 50}}
		}, "notrack-one-sided", Warning, []string{"queries to 10.96.0.10 are tracked, the answers are not"}},

		{"no rules and no traffic", func(m *Measurements) { m.Active, m.Notrack = ptr(true), []Notrack{{Address: kubeDNS}} }, "notrack-missing", Warning, []string{"no rule keeps DNS to 10.96.0.10 untracked"}},
		{"detached", func(m *Measurements) {
			m.Active, m.Notrack = ptr(true), []Notrack{{Address: kubeDNS, Responses: true, Detached: true}}
		}, "notrack-missing", Warning, []string{"Trackless is detached from 10.96.0.10"}},
		{"detached, with traffic", func(m *Measurements) {
			m.Active, m.Listeners = ptr(true), []netip.Addr{kubeDNS}
			m.Notrack = []Notrack{{Address: kubeDNS, Responses: true, Detached: true}}
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: pod1, Entries: 40}}
		}, "notrack-missing", Warning, []string{"Trackless is detached from 10.96.0.10", "40 entries of its queries, answered by 10.244.0.53"}},
		{"entries older than the rules", func(m *Measurements) {
			m.Listeners, m.Recent = []netip.Addr{kubeDNS}, map[summary.DNSFlow]bool{}
			m.Notrack = []Notrack{{Address: kubeDNS, Queries: true, Responses: true}}
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: pod1, Entries: 40}, {Asked: kubeDNS, Address: kubeDNS, Entries: 40, Unreplied: 40}}
			m.Table.DNS.ReversedSources = []summary.Counted{{Address: kubeDNS, Entries: 40}}
		}, "", Info, nil},
		{"entries of unknown rules, none recent", func(m *Measurements) {
			m.Listeners, m.Recent = []netip.Addr{kubeDNS}, map[summary.DNSFlow]bool{}
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: pod1, Entries: 40}}
		}, "", Info, nil},
		{"entries of unknown rules, and packets now", func(m *Measurements) {
			m.Listeners, m.Recent = []netip.Addr{kubeDNS}, map[summary.DNSFlow]bool{{Asked: kubeDNS, Server: pod1}: true}
			m.Table.DNS.Servers = []summary.Server{{Asked: kubeDNS, Address: pod1, Entries: 40}}
		}, "notrack-missing", Warning, []string{"pass the cache on this node by"}},
		{"rules for the queries only", func(m *Measurements) { m.Active, m.Notrack = ptr(true), []Notrack{{Address: kubeDNS, Queries: true}} }, "notrack-one-sided", Critical, []string{"none the answers"}},
		{"rules for the answers only", func(m *Measurements) {
			m.Active, m.Notrack = ptr(true), []Notrack{{Address: kubeDNS, Responses: true}}
		}, "notrack-one-sided", Warning, []string{"none the queries"}},
		{"rules for both", func(m *Measurements) {
			m.Active, m.Notrack = ptr(true), []Notrack{{Address: kubeDNS, Queries: true, Responses: true}}
		}, "", Info, nil},
		{"no rules where nothing is tracked", func(m *Measurements) { m.Notrack = []Notrack{{Address: kubeDNS}} }, "", Info, nil},

		{"inactive", func(m *Measurements) { m.Active = ptr(false) }, "inactive", Info, []string{"nothing is tracked"}},
		{"active", func(m *Measurements) { m.Active = ptr(true) }, "", Info, nil},

		{"Cilium", func(m *Measurements) {
			m.Datapath = Datapath{KubeProxyReplacement: true, Evidence: []string{"link cilium_host"}}
		}, "datapath", Info, []string{"link cilium_host", "CiliumLocalRedirectPolicy"}},
		{"Cilium with a cache", func(m *Measurements) {
			m.Datapath = Datapath{SocketLB: true}
			m.Listeners = []netip.Addr{kubeDNS}
		}, "datapath", Warning, []string{"may never reach it"}},
		{"Calico eBPF", func(m *Measurements) { m.Datapath = Datapath{CalicoEBPF: true} }, "datapath", Info, []string{"BPFExcludeCIDRsFromNAT"}},

		{"healthy answers", func(m *Measurements) { m.Answers = []Answers{healthy()} }, "", Info, nil},
		{"no answer over UDP", func(m *Measurements) {
			m.Answers = []Answers{healthy()}
			m.Answers[0].Inside.Rcode, m.Answers[0].Inside.Error = "", "no answer within 2s"
		}, "dns-unanswered", Critical, []string{"kubernetes.default.svc.cluster.local. over UDP: no answer within 2s", "pod shop/cart", "over TCP it answers"}},
		{"SERVFAIL for the cluster", func(m *Measurements) {
			m.Answers = []Answers{healthy()}
			m.Answers[0].Inside.Rcode = "SERVFAIL"
		}, "dns-unanswered", Critical, []string{"SERVFAIL"}},
		{"half of a lookup lost", func(m *Measurements) {
			m.Answers = []Answers{healthy()}
			m.Answers[0].HalfPairs = 2
		}, "dns-half-lookups", Warning, []string{"10 times; 2 times", "single-request-reopen"}},
		{"a dead upstream", func(m *Measurements) {
			m.Answers = []Answers{healthy()}
			m.Answers[0].Outside.Rcode, m.Answers[0].Outside.Took = "SERVFAIL", 2*time.Second
		}, "dns-upstream", Warning, []string{"upstream is dead", "example.org.: SERVFAIL after 2s", "--ask NAME"}},
		{"a slow upstream", func(m *Measurements) {
			m.Answers = []Answers{healthy()}
			m.Answers[0].Outside.Took = 1500 * time.Millisecond
		}, "dns-upstream", Warning, []string{"slowly", "after 1.5s"}},
		{"a long search path", func(m *Measurements) {
			m.Answers = []Answers{healthy()}
			m.Answers[0].Expanded, m.Answers[0].NDots = Answer{Name: "example.org.shop.svc.cluster.local.", Rcode: "NXDOMAIN"}, 5
		}, "dns-search-path", Info, []string{"a lookup of example.org first asks 3 other names", "8 queries", "ndots:5", "`searchpath`"}},
		{"a search path that is not walked", func(m *Measurements) {
			m.Answers = []Answers{healthy()}
			m.Answers[0].Expanded, m.Answers[0].NDots = Answer{Name: "example.org.shop.svc.cluster.local.", Rcode: "NXDOMAIN"}, 1
		}, "", Info, nil},
		{"TCP is blocked", func(m *Measurements) {
			m.Answers = []Answers{healthy()}
			m.Answers[0].InsideTCP = Answer{Name: "kubernetes.default.svc.cluster.local.", Error: "no answer within 2s"}
		}, "dns-tcp-blocked", Warning, []string{"over TCP: no answer within 2s", "network policies"}},
		{"TCP is blocked and needed", func(m *Measurements) {
			m.Answers = []Answers{healthy()}
			m.Answers[0].InsideTCP, m.Answers[0].Outside.Truncated = Answer{Name: "kubernetes.default.svc.cluster.local.", Error: "connection refused"}, true
		}, "dns-tcp-blocked", Critical, []string{"the answer for example.org. was truncated"}},
		{"redirected past the cache", func(m *Measurements) {
			m.Listeners = []netip.Addr{kubeDNS}
			m.Answers = []Answers{healthy()}
			m.Answers[0].TranslatedTo = pod2
		}, "dns-past-cache", Warning, []string{"listens on 10.96.0.10, and 10.244.1.53 answered", "service mesh"}},
		{"a Service without a cache", func(m *Measurements) {
			m.Answers = []Answers{healthy()}
			m.Answers[0].TranslatedTo = pod2
		}, "", Info, nil},
		{"detached from the Service", func(m *Measurements) {
			m.Listeners, m.Notrack = []netip.Addr{kubeDNS}, []Notrack{{Address: kubeDNS, Responses: true, Detached: true}}
			m.Answers = []Answers{healthy()}
			m.Answers[0].TranslatedTo = pod2
		}, "", Info, nil},

		{"a saved ruleset", func(m *Measurements) {
			m.SavedTables = []SavedTable{{Path: "/etc/nftables.d/all.nft", Line: 7, Table: "trackless-1d1063ae"}}
		}, "saved-ruleset", Warning, []string{"/etc/nftables.d/all.nft:7 names table inet trackless-1d1063ae", "Operation not permitted", SaveOthers}},

		{"kube-proxy's defaults", func(m *Measurements) { m.KubeProxies = []KubeProxy{{NodeCPUs: 8}} }, "kube-proxy", Info,
			[]string{"could not be read", "to 262,144 (maxPerCore 32,768 x 8 CPUs of the node, at least min 131,072)", "lowers a higher one too before Kubernetes 1.37", "tcp_timeout_established to 24h0m0s", "tcp_timeout_close_wait to 1h0m0s"}},
		{"kube-proxy against a file", func(m *Measurements) {
			m.KubeProxies = []KubeProxy{{Path: "/var/lib/kube-proxy/config.conf", UDPTimeout: ptr(10 * time.Second), TCPBeLiberal: ptr(true), MaxPerCore: ptr(int64(0))}}
			m.Settings[0].Files = []sysctl.SettingFile{{Path: "/etc/sysctl.d/90.conf", Line: 3, Value: "3600"}}
		}, "kube-proxy", Warning, []string{"/etc/sysctl.d/90.conf:3 asks for 1h0m0s", "udp_timeout to 10s", "tcp_be_liberal to 1", "config.conf"}},
		{"kube-proxy agrees with a file", func(m *Measurements) {
			m.KubeProxies = []KubeProxy{{}}
			m.Settings[0].Files = []sysctl.SettingFile{{Path: "/etc/sysctl.d/90.conf", Line: 3, Value: "86400"}}
		}, "kube-proxy", Info, nil},
		{"kube-proxy lowers a file's limit", func(m *Measurements) {
			m.KubeProxies = []KubeProxy{{NodeCPUs: 2, Since: 30, Before: 36}}
			m.Settings = append(m.Settings, sysctl.Setting{Name: "net.netfilter.nf_conntrack_max", Value: 1_000_000, Files: []sysctl.SettingFile{{Path: "/etc/sysctl.d/90.conf", Line: 1, Value: "1000000"}}})
		}, "kube-proxy", Warning, []string{"90.conf:1 asks for 1,000,000: lost", "lowers a higher one"}},
		{"kube-proxy 1.37 leaves a file's higher limit", func(m *Measurements) {
			m.KubeProxies = []KubeProxy{{NodeCPUs: 2, Since: 37}}
			m.Settings = append(m.Settings, sysctl.Setting{Name: "net.netfilter.nf_conntrack_max", Value: 1_000_000, Files: []sysctl.SettingFile{{Path: "/etc/sysctl.d/90.conf", Line: 1, Value: "1000000"}}})
		}, "kube-proxy", Info, []string{"leaves a higher one"}},
		{"k3s against a file", func(m *Measurements) {
			m.KubeProxies = []KubeProxy{{Distribution: K3s, TCPEstablishedTimeout: ptr(99 * time.Second)}}
			m.Settings[0].Files = []sysctl.SettingFile{{Path: "/etc/sysctl.d/90.conf", Line: 3, Value: "7200"}}
		}, "kube-proxy", Warning, []string{"kube-proxy, inside k3s, overrides", "to 1m39s", "asks for 2h0m0s", "/etc/rancher/k3s/config.yaml"}},
		{"the kube-proxy of k0s", func(m *Measurements) { m.KubeProxies = []KubeProxy{{Distribution: K0s}} }, "kube-proxy", Info, []string{"k0s.yaml"}},
		{"RKE2 sets it, its kube-proxy does not", func(m *Measurements) {
			m.KubeProxies = []KubeProxy{{Distribution: RKE2}, {MaxPerCore: ptr(int64(0)), TCPEstablishedTimeout: ptr(time.Duration(0)), TCPCloseWaitTimeout: ptr(time.Duration(0))}}
		}, "kube-proxy", Info, []string{"inside RKE2 sets", "/etc/rancher/rke2/config.yaml"}},
		{"kube-proxy sets nothing", func(m *Measurements) {
			m.KubeProxies = []KubeProxy{{MaxPerCore: ptr(int64(0)), TCPEstablishedTimeout: ptr(time.Duration(0)), TCPCloseWaitTimeout: ptr(time.Duration(0)), TCPBeLiberal: ptr(false)}}
		}, "", Info, nil},
		{"kube-proxy where there is no limit", func(m *Measurements) {
			m.Limit = 0
			m.KubeProxies = []KubeProxy{{NodeCPUs: 2}}
		}, "kube-proxy", Info, []string{"there is no limit now", "maxPerCore 0 leaves it alone"}},

		{"no limit, many entries", func(m *Measurements) { m.Limit, m.Entries, m.Growth = 0, 260_000, 9_000 }, "", Info, nil},
		{"no limit, DNS", func(m *Measurements) {
			m.Limit = 0
			m.Table.DNS = summary.DNS{Entries: 10_000, UDP: 10_000}
		}, "dns-share", Info, []string{"50 % of the table is DNS"}},
		{"no limit, few buckets", func(m *Measurements) { m.Limit, m.Buckets = 0, 1_024 }, "few-buckets", Warning, []string{"20,000 entries, no limit", "echo 65536"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := quiet()
			test.change(m)
			findings := Check(m)
			if test.id == "" {
				if len(findings) != 0 {
					t.Errorf("found %+v", findings)
				}
				return
			}
			i := slices.IndexFunc(findings, func(f Finding) bool { return f.ID == test.id })
			if i < 0 {
				t.Fatalf("%s not found in %+v", test.id, findings)
			}
			f := findings[i]
			provoked[f.ID] = true
			if f.Severity != test.worst {
				t.Errorf("severity %s, want %s", f.Severity, test.worst)
			}
			if f.Title == "" || len(f.Evidence) == 0 || len(f.Remedy) == 0 {
				t.Errorf("incomplete: %+v", f)
			}
			b, err := json.Marshal(f)
			if err != nil {
				t.Fatal(err)
			}
			var back Finding
			if err := json.Unmarshal(b, &back); err != nil || back.Severity != f.Severity {
				t.Errorf("JSON %s: %v", b, err)
			}
			text := strings.Join(slices.Concat([]string{f.Title, f.Memory, f.Risk}, f.Evidence, f.Remedy), "\n")
			for _, want := range test.says {
				if !strings.Contains(text, want) {
					t.Errorf("does not say %q:\n%s", want, text)
				}
			}
		})
	}
	for _, r := range Rules {
		if !provoked[r.ID] {
			t.Errorf("no row provokes %s", r.ID)
		}
	}
}

func TestEverySymptomIsExplained(t *testing.T) {
	for _, s := range Symptoms {
		if ids := Explaining(s.Symptom); len(ids) < 2 {
			t.Errorf("%s (%s) is explained by %v", s.Symptom, s.Description, ids)
		}
	}
	for _, r := range Rules {
		if r.About == "" {
			t.Errorf("%s is about nothing", r.ID)
		}
		for _, s := range r.Symptoms {
			if !slices.ContainsFunc(Symptoms, func(known struct {
				Symptom     Symptom
				Description string
			}) bool {
				return known.Symptom == s
			}) {
				t.Errorf("%s explains the unknown symptom %s", r.ID, s)
			}
		}
	}
}

// A packet that loses the race counts as drop, too: the limit has nothing to do
// with it.
func TestClashIsNoDrop(t *testing.T) {
	m := quiet()
	m.Rise.Drop, m.Total.Drop, m.Rise.InsertFailed, m.Total.InsertFailed = 3, 3, 3, 3
	if findings := Check(m); len(findings) != 1 || findings[0].ID != "insert-failed" || findings[0].Severity != Warning {
		t.Errorf("findings %+v", findings)
	}
}

func TestWorstFirst(t *testing.T) {
	m := quiet()
	m.Total.InsertFailed = 1
	m.Rise.Drop, m.Total.Drop = 1, 2
	m.Entries = 220_000
	findings := Check(m)
	if len(findings) != 3 || findings[0].ID != "drop" || findings[1].ID != "table-full" || findings[2].ID != "insert-failed" {
		t.Errorf("findings %+v", findings)
	}
	if Worst(findings) != Critical || Worst(nil) != Info {
		t.Errorf("worst %s", Worst(findings))
	}
	if _, err := json.Marshal(Check(quiet())); err != nil || Check(quiet()) == nil {
		t.Error("no findings are not an empty list")
	}
}

func TestRecommend(t *testing.T) {
	for _, test := range []struct {
		name         string
		change       func(*Measurements)
		max, buckets uint64
		sets         []string
		note         string
	}{
		{"a quiet node keeps what it has", func(*Measurements) {}, 262_144, 262_144, nil, ""},
		{"twice the load", func(m *Measurements) { m.Entries = 250_000 }, 524_288, 524_288, []string{"nf_conntrack_max=524288"}, ""},
		{"kube-proxy's buckets", func(m *Measurements) { m.Buckets = 65_536 }, 262_144, 262_144, nil, ""},
		{"no limit stays none", func(m *Measurements) { m.Limit = 0 }, 0, 262_144, nil, "none is proposed"},
		{"no limit, a hash for the load", func(m *Measurements) { m.Limit, m.Entries, m.Buckets = 0, 250_000, 65_536 }, 0, 524_288, nil, "none is proposed"},
		{"more than memory allows", func(m *Measurements) { m.Entries, m.MemoryTotal = 250_000, 2<<30 }, 342_392, 342_392, []string{"nf_conntrack_max=342392"}, "more nodes"},
		{"never less than there is", func(m *Measurements) { m.Entries, m.MemoryTotal = 250_000, 1<<20 }, 262_144, 262_144, nil, "more nodes"},
		{"five days", func(m *Measurements) { m.Settings = settings("nf_conntrack_tcp_timeout_established", 432000) }, 262_144, 262_144, []string{"nf_conntrack_tcp_timeout_established=86400"}, ""},
		{"too short", func(m *Measurements) { m.Settings = settings("nf_conntrack_tcp_timeout_established", 600) }, 262_144, 262_144, []string{"nf_conntrack_tcp_timeout_established=86400"}, ""},
		{"TIME_WAIT", func(m *Measurements) {
			m.Table.States = []summary.StateCount{{Protocol: "tcp", State: "TIME_WAIT", Entries: 7_000}}
		}, 262_144, 262_144, []string{"nf_conntrack_tcp_timeout_time_wait=30"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := quiet()
			test.change(m)
			r := Recommend(m)
			if r.Size.Max != test.max || r.Size.Buckets != test.buckets {
				t.Errorf("size %+v, want %d and %d buckets", r.Size, test.max, test.buckets)
			}
			var sets []string
			for _, s := range r.Settings {
				sets = append(sets, strings.TrimPrefix(s.Name, "net.netfilter.")+"="+thousandsFree(s.Value))
				if s.Why == "" || s.Memory == "" || s.Risk == "" {
					t.Errorf("incomplete: %+v", s)
				}
			}
			if !slices.Equal(sets, test.sets) {
				t.Errorf("sets %v, want %v", sets, test.sets)
			}
			if notes := strings.Join(r.Notes, "\n"); (notes != "") != (test.note != "") || !strings.Contains(notes, test.note) {
				t.Errorf("notes %q, want %q", notes, test.note)
			}
		})
	}
}

// What kube-proxy writes into nf_conntrack_max, by its version.
func TestKubeProxyLimits(t *testing.T) {
	for _, test := range []struct {
		name string
		k    KubeProxy
		want []uint64
	}{
		{"the defaults on few CPUs", KubeProxy{NodeCPUs: 2}, []uint64{131_072}},
		{"the defaults on many", KubeProxy{NodeCPUs: 16}, []uint64{524_288}},
		{"left alone", KubeProxy{NodeCPUs: 2, MaxPerCore: ptr(int64(0)), Min: ptr(int64(9))}, nil},
		{"of its own CPUs before 1.21", KubeProxy{NodeCPUs: 2, OwnCPUs: 1, Before: 21, MaxPerCore: ptr(int64(100_000)), Min: ptr(int64(0))}, []uint64{100_000}},
		{"of the node's CPUs since", KubeProxy{NodeCPUs: 2, OwnCPUs: 1, Since: 21, MaxPerCore: ptr(int64(100_000)), Min: ptr(int64(0))}, []uint64{200_000}},
		{"of either", KubeProxy{NodeCPUs: 2, OwnCPUs: 1, MaxPerCore: ptr(int64(100_000)), Min: ptr(int64(0))}, []uint64{200_000, 100_000}},
		{"cut since 1.36, whatever min", KubeProxy{NodeCPUs: 64, Since: 36, Min: ptr(int64(3_000_000))}, []uint64{1_048_576}},
		{"not cut before", KubeProxy{NodeCPUs: 64, Since: 21, Before: 36}, []uint64{2_097_152}},
		{"perhaps cut", KubeProxy{NodeCPUs: 64, Since: 21}, []uint64{2_097_152, 1_048_576}},
		{"min alone is not cut", KubeProxy{NodeCPUs: 64, Since: 36, MaxPerCore: ptr(int64(1)), Min: ptr(int64(2_097_152))}, []uint64{2_097_152}},
		{"k3s does not cut", KubeProxy{Distribution: K3s, NodeCPUs: 64, OwnCPUs: 1, Since: 36}, []uint64{2_097_152}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []uint64
			for _, l := range test.k.Limits() {
				got = append(got, l.Entries)
				if l.How == "" {
					t.Errorf("%d comes from nowhere", l.Entries)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("limits %v, want %v", got, test.want)
			}
		})
	}
}

func thousandsFree(n uint64) string { return strings.ReplaceAll(figure.Thousands(n), ",", "") }

func TestNodes(t *testing.T) {
	for _, test := range []struct {
		name  string
		nodes []Node
		want  *NodeCount
	}{
		{"none", nil, nil},
		{"without a limit", []Node{{Entries: 5}}, nil},
		{"two crowded ones", []Node{{"a", 900, 1000}, {"b", 960, 2000}, {"c", 5, 0}}, &NodeCount{Nodes: 2, Entries: 1860, Limit: 1000, Fill: 93, Needed: 4, FillThen: 46.5}},
		{"exactly on target", []Node{{"a", 600, 1000}}, &NodeCount{Nodes: 1, Entries: 600, Limit: 1000, Fill: 60, Needed: 1, FillThen: 60}},
		{"idle", []Node{{"a", 0, 1000}}, &NodeCount{Nodes: 1, Limit: 1000, Needed: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Nodes(test.nodes)
			if (got == nil) != (test.want == nil) || got != nil && *got != *test.want {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
}
