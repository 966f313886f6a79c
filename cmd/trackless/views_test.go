package main

import (
	"slices"
	"testing"
)

// With view, two server blocks share a name at one address, and a fast path that holds the
// answers of one would answer for the other. Decide knows only the views of its own block.
func TestNoViews(t *testing.T) {
	if slices.Contains(directives, "view") {
		t.Error("the directive view is in the list: fastpath has to leave all blocks to CoreDNS that share an address with a view")
	}
}
