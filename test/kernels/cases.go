package kernels

// Expressions for tests that the emulated processor makes long: those that send
// each packet of a table through rules of the kernel, and cycles by the hundred.
const (
	traces = "^Test(Failover)?Kernel(Traces|WithoutARule)$"
	long   = traces + "|^TestCyclesUnderAContendedLock$"

	// races are lost by packets on two processors at once; the machine has one.
	races = "^TestDoctorEndToEnd$/^insert-failed$"
)

// OnOtherKernels are the cases of what depends on the kernel's release most: `make
// test-vm` runs them on more releases.
const OnOtherKernels = "kernel-program,kernel-attach,kernel-hits"

// Cases are what is shown on another kernel, the shortest first.
var Cases = []Case{
	{
		Name: "owner", What: "rules tell whose they are, also across PID namespaces",
		Package: "iptables/owner",
	},
	{
		Name: "dummy-link", What: "listen addresses on a dummy: there with trackless, gone with it",
		Package: "test/kernels", Tests: "^TestListenLink$",
	},
	{
		Name: "kernel-program", What: "the program for hits in the kernel: accepted by the verifier, the cache's answers, closed without a lease",
		Package: "fastpath/kernel", Tests: "^Test(AnswersAreTheCaches|HitsAreCounted|ClosedListeners|Capabilities|ReportFreesClassesWithoutHits)$",
	},
	{
		Name: "kernel-attach", What: "it is attached to the devices of pods, and a pod is answered",
		Package: "fastpath/attach", Tests: "^Test(DevicesOfPods|AnswersAPod|FiltersOfOthers|AttachesAgain|TwoInstancesWithClsact)$",
	},
	{
		Name: "kernel-hits", What: "serve with hits in the kernel: no entry, SIGKILL, restart, stop",
		Package: "test/kernels", Tests: "^TestKernelHits$",
	},
	{
		Name: "nftables", What: "serve with nftables: no entry, SIGSTOP, SIGCONT, SIGKILL, failover, rules, doctor",
		Package: "test/kernels", Tests: "^TestServe$/^nftables$",
	},
	{
		Name: "iptables-legacy", What: "serve with iptables, legacy binaries: the same",
		Package: "test/kernels", Tests: "^TestServe$/^iptables_legacy$",
	},
	{
		Name: "iptables-nft", What: "serve with iptables, nft binaries: the same",
		Package: "test/kernels", Tests: "^TestServe$/^iptables_nft$",
	},
	{
		Name: "hostaddr", What: "links, addresses and routes: put, repaired, adopted, taken back",
		Package: "iptables/hostaddr",
	},
	{
		Name: "owned-table", What: "the owned table: held, renewed, closed to others, gone with its socket",
		Package: "iptables/nftables", Skip: long,
	},
	{
		Name: "without-nftables", What: "a kernel without nf_tables: nothing is there, and legacy rules are found",
		Package: "iptables/internal/nfnl",
	},
	{
		Name: "failover-table", What: "the failover table: installed, repaired, replaced, removed",
		Package: "iptables/failover", Skip: long,
	},
	{
		Name: "firewalls", What: "other programs' rules before conntrack, their drops, and our accept rules",
		Package: "iptables/hostrules",
	},
	{
		Name: "leftovers", What: "node-cache's rules, of nf_tables and legacy, deleted",
		Package: "iptables/predecessor",
	},
	{
		Name: "services", What: "Services looked up in kube-proxy's rules",
		Package: "iptables/kubeproxy",
	},
	{
		Name: "xtables", What: "both kinds of iptables binaries: rules, lease, lock, repair, leftovers",
		Package: "iptables/binaries", Skip: long,
	},
	{
		Name: "legacy-read", What: "legacy tables read through the sockopt interface",
		Package: "iptables/legacy",
	},
	{
		Name: "control", What: "attach and detach over the control socket",
		Package: "iptables/control",
	},
	{
		Name: "conntrack", What: "the connection tracking table: listed, filtered, watched, deleted from",
		Package: "conntrack",
	},
	{
		Name: "rules", What: "trackless rules: show, remove, attach, detach",
		Package: "cmd/trackless/rules", Tests: "^TestRules",
	},
	{
		Name: "plan", What: "trackless rules plan",
		Package: "cmd/trackless", Tests: "^Test(RulesPlan|ThePlan)",
	},
	{
		Name: "doctor", What: "trackless doctor: what is wrong is found",
		Package: "cmd/trackless", Tests: "^TestDoctor", Skip: races,
	},
	{
		Name: "failover", What: "kube-dns answers at link-local addresses that nobody untracks",
		Package: "test/failover",
	},
	{
		Name: "integration", What: "the program on a node: faults, stop, two instances, addresses, sources, verbs",
		Package: "test/integration",
		Tests:   "^Test(Dig|WithoutRules|Kill|Stop|TwoInstances|AHang|AnAddress|RulesVerbs|WhoIsServed|DryRun|Lease)",
	},
	{
		Name: "nftables-trace", What: "every kind of packet through the nftables rules, with and without each rule",
		Package: "iptables/nftables", Tests: traces,
	},
	{
		Name: "failover-trace", What: "every kind of packet through the failover table, with and without each rule",
		Package: "iptables/failover", Tests: traces,
	},
	{
		Name: "iptables-trace", What: "the same with iptables rules, of both kinds of binaries",
		Package: "iptables/binaries", Tests: traces,
	},
}
