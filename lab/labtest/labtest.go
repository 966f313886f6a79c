// Package labtest is what tests need to work on a lab node: the program under
// test, built from these sources, and a node that goes with the test.
package labtest

import (
	"sync"
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testprogram"
	"github.com/trackless-dns/trackless/lab"
)

// Program returns the path of a trackless binary built from these sources, once
// for all tests of the process. Where the environment variable
// TRACKLESS_PROGRAM names one, it is that. The path is good for this process
// and its children; no file is left behind.
func Program(t testing.TB) string {
	t.Helper()
	path, err := testprogram.Path()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Require skips the test on a machine that cannot run a lab node, with the
// reason, or fails it if TRACKLESS_REQUIRE_PRIVILEGED=1.
func Require(t testing.TB) {
	t.Helper()
	if err := missing(); err != nil {
		testns.Skip(t, "this machine cannot run a lab node: %v", err)
	}
}

var missing = sync.OnceValue(func() error {
	return lab.Missing(lab.Options{WithoutIPv6: !lab.HasIPv6()})
})

// NewNode builds a node that is closed with the test. The options' Program is
// filled in unless set, and IPv6 left out where this kernel has none.
func NewNode(t testing.TB, options lab.Options) *lab.Node {
	t.Helper()
	Require(t)
	if options.Program == "" && !options.WithoutKubeDNS {
		options.Program = Program(t)
	}
	options.WithoutIPv6 = options.WithoutIPv6 || !lab.HasIPv6()
	node, err := lab.NewNode(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := node.Close(); err != nil {
			t.Errorf("close the node: %v", err)
		}
	})
	return node
}
