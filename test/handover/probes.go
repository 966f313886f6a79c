package main

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/lab/load"
)

// probes connect to the ports that kubelet and Prometheus ask, which all instances share.
type probes struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	failed map[string]int // by reason
}

// probeEvery is more often than anybody asks, so that a gap shows.
const probeEvery = 10 * time.Millisecond

func (b *bench) startProbes() *probes {
	p := &probes{failed: map[string]int{}}
	ctx, cancel := context.WithCancel(b.ctx)
	p.cancel = cancel
	for _, port := range []string{"8080", "8181"} {
		p.done.Go(func() {
			tick := time.NewTicker(probeEvery)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				err := b.node.Namespace.Do(func() error {
					conn, err := net.DialTimeout("tcp", net.JoinHostPort(probed, port), time.Second)
					if err == nil {
						err = conn.Close()
					}
					return err
				})
				if err != nil {
					p.mu.Lock()
					p.failed[port+": "+load.Reason(err)]++
					p.mu.Unlock()
				}
			}
		})
	}
	return p
}

func (p *probes) stop() map[string]int {
	p.cancel()
	p.done.Wait()
	return p.failed
}
