package kernels

// Cases are what is shown on another kernel, the fastest first.
var Cases = []Case{
	{
		Name: "dummy-link", What: "listen addresses on a dummy link of ours, taken over and removed",
		Package: "iptables/hostaddr",
	},
	{
		Name: "owner", What: "a table says whose it is, also from another PID namespace",
		Package: "iptables/owner",
	},
	{
		Name: "owned-table", What: "the owned table: read back, renewed, refused to others, gone with its socket; the failover table",
		Package: "iptables/nft",
	},
	{
		Name: "iptables", What: "the iptables backend with legacy and nft binaries: rules, lease, lock, repair, leftovers",
		Package: "iptables/xtables",
	},
	{
		Name: "legacy-read", What: "legacy tables read through the kernel's sockopt interface",
		Package: "iptables/legacy",
	},
	{
		Name: "conntrack", What: "the table over netlink: streamed, filtered, followed, deleted from",
		Package: "conntrack",
	},
	{
		Name: "control", What: "attach and detach over the control socket",
		Package: "iptables/control",
	},
	{
		Name: "rules", What: "trackless rules show, plan, remove",
		Package: "cmd/trackless", Tests: "^(TestRules.*|TestThePlan.*)$",
	},
	{
		Name: "doctor", What: "trackless doctor finds what is wrong",
		Package: "cmd/trackless", Tests: "^TestDoctor.*$",
	},
	{
		Name: "backends", What: "nftables, iptables legacy and nft: no entry, lease at SIGSTOP and SIGCONT, fallback at SIGKILL, rules, doctor",
		Package: "test/kernels",
	},
	{
		Name: "failover", What: "kube-dns answers at link-local addresses while nobody untracks them",
		Package: "test/failover",
	},
	{
		Name: "serve", What: "trackless serve on a node: no entry, fallback at SIGKILL and SIGSTOP, back at SIGCONT, nothing left",
		Package: "test/integration",
		Tests:   "^(TestDig.*|TestWithoutRules.*|TestKill.*|TestStop.*|TestTwoInstances.*|TestAHang.*|TestAnAddress.*|TestRulesVerbs|TestWhoIsServed|TestDryRun|TestLeaseOption)$",
	},
}
