package socket

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testport"
)

// The search for our sockets fills the buffer of no other.
func TestProbesFillNoBuffer(t *testing.T) {
	t.Parallel()
	var probes atomic.Int32
	at := testport.Unused(t, "127.0.0.1")
	for range 2 {
		conn := bare(t, at)
		go func() {
			for b := make([]byte, 512); ; probes.Add(1) {
				if _, err := conn.Read(b); err != nil {
					return
				}
			}
		}()
	}
	g := startedAt(t, at, 4)
	g.Until(time.Now().Add(time.Hour))
	steered(t, g)
	const most = 64 // of 277 that fit the smallest default buffer
	if n := probes.Load(); n > most {
		t.Errorf("other sockets got %d probes", n)
	}
}
