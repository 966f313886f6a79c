// Package reconcile keeps the rules and addresses of one process in the kernel
// while, and only while, the process answers queries at its listen addresses.
//
// It knows nothing of DNS servers: what it takes to be sure that somebody
// answers is handed in as a [Checker].
package reconcile
