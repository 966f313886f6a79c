// Package attach brings a tc program to the devices of pods: to those that are there, and
// to each new one before its pod can send. It leaves uplinks and bridges alone.
//
// The kernel's tcx (Linux 6.6) is preferred: the program goes with the process. On older
// kernels it is a filter of the qdisc clsact, which outlives a process that is killed. So
// the program must answer only under a lease.
package attach
