// Package iptables holds the NOTRACK contract: DNS to this node's listen
// addresses leaves no entry in the connection tracking table while, and only
// while, somebody answers there.
//
// A query from a pod to a Service address is recorded by conntrack at hook
// priority -200 and rewritten by kube-proxy at -100. A rule in the raw hooks,
// at -300, marks the packet as untracked instead: no entry, no DNAT, and since
// the address is on this node, local delivery. The same holds for the node's
// own queries, and in the other direction for responses; a response that is
// tracked while its query was not would become an entry of its own, and later
// queries from the same port would match it in reply direction and never be
// rewritten again. Therefore both directions are untracked in both hooks.
//
// The absence of the rules is the fallback: without them the same packet is
// tracked, rewritten and answered by the cluster's DNS. So the rules must not
// outlive the process; package reconcile and the backends see to that.
//
// A [Plan] is a pure value that says what has to be untracked; a [Backend]
// turns it into the kernel's rules in one transaction. The package holds values
// and interfaces; package reconcile decides when the rules are there.
package iptables
