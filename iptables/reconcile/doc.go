// Package reconcile keeps the rules and addresses of one process in the kernel
// while, and only while, the process answers queries at its listen addresses.
//
// A [Reconciler] is told of a plan before the listeners open, and attaches it
// once they answer (prepare.go). From then on several goroutines keep it so
// (keep.go). One has a timer and runs rounds (rounds.go): each renews the leases,
// and starts what the others do when it is due. These check the effect of the rules,
// quarantine devices that lose their queries (quarantine.go), and measure the load
// (load.go). Another puts back what others take away (repair.go).
// Package lease decides what follows from all that. Queries go to the cluster's
// DNS when a firewall blocks the path (path.go), when an operator or the health of
// the upstream asks for it (failback.go), and at a stop (stop.go).
//
// It knows nothing of DNS servers: what it takes to be sure that somebody
// answers is handed in as a [Checker].
package reconcile
