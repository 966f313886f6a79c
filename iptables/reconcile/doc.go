// Package reconcile keeps the rules and addresses of one process in the kernel
// while, and only while, the process answers queries at its listen addresses.
//
// A [Reconciler] is told of a plan before the listeners open, and attaches it
// once they answer (prepare.go). From then on several goroutines keep it so
// (keep.go): each round of checks renews the leases, the effect of the rules is
// checked, what others take away is put back (repair.go), devices that lose their
// queries are quarantined (quarantine.go), and the load is measured (load.go).
// Package lease decides what follows from all that. Queries go to the cluster's
// DNS when a firewall blocks the path (path.go), when an operator or the health of
// the upstream asks for it (failback.go), and at a stop (stop.go).
//
// It knows nothing of DNS servers: what it takes to be sure that somebody
// answers is handed in as a [Checker].
package reconcile
