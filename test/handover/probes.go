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
	failed []failedProbe
}

// failedProbe is a connection that failed.
type failedProbe struct {
	at     time.Time
	reason string
}

// probeEvery is more often than anybody asks, so that a gap shows.
const probeEvery = 10 * time.Millisecond

func (b *bench) startProbes() *probes {
	p := &probes{}
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
				begun := time.Now()
				err := b.node.Namespace.Do(func() error {
					conn, err := net.DialTimeout("tcp", net.JoinHostPort(probed, port), time.Second)
					if err == nil {
						err = conn.Close()
					}
					return err
				})
				if err != nil {
					p.mu.Lock()
					p.failed = append(p.failed, failedProbe{begun, port + ": " + load.Reason(err)})
					p.mu.Unlock()
				}
			}
		})
	}
	return p
}

func (p *probes) stop() []failedProbe {
	p.cancel()
	p.done.Wait()
	return p.failed
}
