// Package chaos makes the faults that a node-local DNS cache must survive, on
// a lab node under a steady load, and counts what they cost.
package chaos
