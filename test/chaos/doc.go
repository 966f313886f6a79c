// Package chaos makes the faults that a node-local DNS cache must survive, on
// a lab node under a steady load, and counts what they cost: every query is a
// first and only attempt with a limit of 5 s, from pods and from the node,
// over UDP and TCP, IPv4 and IPv6, at a ClusterIP and at a link-local address.
//
// A [scene.Case] is one fault. It is told as a sequence of phases on the time line of
// the load: in a steady phase every client must be answered, by the responder
// that the phase names, and in a transition between two of them queries may be
// lost for as long as the case's bar allows and no longer. Afterwards the node
// must be as it was before trackless started: rules, links, addresses, routes
// and connection tracking entries. What may differ is listed in [scene.Exception].
//
// Each case has a [scene.Sabotage], which takes away what the case is about: with it
// the case must fail, and for the reason that the sabotage names. So a case
// that proves nothing is found out.
//
// Nothing outlives a run: everything happens in network namespaces without
// names and in children that die with this process.
package chaos
