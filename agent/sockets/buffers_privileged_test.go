//go:build privileged

package sockets

import (
	"testing"

	"github.com/trackless-dns/trackless/internal/testns"
)

// Under a CPU limit a listener's buffer holds the queries until they fail over.
func TestListenersAreEnlarged(t *testing.T) {
	testns.Root(t)
	t.Parallel()
	_, send, control := listening(t)
	control(func(fd int) {
		if err := enlarge(fd, bufferUnderLimit); err != nil {
			t.Fatal(err)
		}
	})
	const packets = 2000
	send(packets, 64)
	control(func(fd int) {
		if queued, dropped := bufferOf(fd); dropped != 0 || queued < packets/4 || queued > packets*4 {
			t.Errorf("%d queued and %d dropped of %d", queued, dropped, packets)
		}
	})
}
