// Package iptables says which packets are untracked and how a backend is asked for
// it. DNS to the listen addresses of this node leaves no entry in the conntrack
// table as long as an instance answers there, and no longer.
//
// A query from a pod to a Service address is recorded by conntrack at hook
// priority -200 and rewritten by kube-proxy at -100. A rule in the raw hooks,
// at -300, marks the packet as untracked instead: no entry, no DNAT. The address is
// on this node, so the packet is delivered locally. The same holds for queries of
// the node itself. Responses are untracked, too: a tracked response to an untracked
// query would become an entry of its own. Later queries from the same port would
// match that entry in reply direction, and kube-proxy would never rewrite them
// again. Therefore both directions are untracked in both hooks.
//
// Without the rules queries fail over: the same packet is tracked, rewritten and
// answered by the cluster's DNS. So the rules must not outlive the process. Package
// reconcile and the backends ensure that.
//
// A [Plan] is a pure value that lists the untracked endpoints; a [Backend] turns it
// into the kernel's rules in one transaction. This package holds values and
// interfaces; package reconcile decides when the rules are there.
package iptables
