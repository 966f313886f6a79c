package main

import (
	"net"
	"testing"
)

// TestListenersAreNotMultipath: the kernel hands no connection of a multipath TCP listener to
// another listener of its group, so a replacement would lose those in the accept queue. Go
// opens such listeners unless go.mod says otherwise.
func TestListenersAreNotMultipath(t *testing.T) {
	if new(net.ListenConfig).MultipathTCP() {
		t.Error("listeners are for multipath TCP; keep the line godebug of go.mod")
	}
}
