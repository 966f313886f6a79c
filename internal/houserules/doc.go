// Package houserules holds the limits that keep the tree readable: how long a
// package, a file and a function may be, and that the program contains nothing
// that only tests use. It has a test and nothing else.
package houserules
