// Package node has the verbs about a node as a whole: doctor says what is wrong with
// it, tune recommends settings, snapshot writes down its state, and compare says what
// changed between two snapshots.
package node
