// Package lease decides when queries are untracked, and when they are left to
// the cluster's DNS. It is a state machine: events go in with the time at which
// they happened, and what has to be done comes out. It does nothing itself, has
// no clock and no goroutine.
//
// The lease of a listen address lasts for a time, and the answer to a lease
// probe renews it. A process that hangs, or is killed, renews nothing, and the
// kernel ends the lease; so the machine never has to act in time for queries to
// reach the cluster's DNS. It has to know who holds what, to tell the faults of
// others from its own, and to wait longer each time that a lease runs out.
package lease
