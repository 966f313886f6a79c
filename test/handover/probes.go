package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/trackless-dns/trackless/lab/load"
)

// probes ask the ports that kubelet and Prometheus ask, which all instances share.
type probes struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	sent   int
	failed []failedProbe
}

// failedProbe is a request that failed.
type failedProbe struct {
	at     time.Time
	reason string
}

// probeEvery is more often than anybody asks, so that a gap shows.
const probeEvery = 50 * time.Millisecond

func (b *bench) startProbes() *probes {
	p := &probes{}
	ctx, cancel := context.WithCancel(b.ctx)
	p.cancel = cancel
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, // each on a connection of its own
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = b.node.Namespace.Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
	}}
	for _, url := range []string{"http://" + probedMetrics + "/metrics", "http://" + probedHealth + "/health", "http://" + probedReady + "/ready"} {
		p.done.Go(func() { p.ask(ctx, client, url) })
	}
	return p
}

// ask asks until the context ends.
func (p *probes) ask(ctx context.Context, client *http.Client, url string) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		begun := time.Now()
		err := get(client, url)
		p.mu.Lock()
		p.sent++
		if err != nil {
			p.failed = append(p.failed, failedProbe{begun, url + ": " + load.Reason(err)})
		}
		p.mu.Unlock()
	}
}

// get asks for a page, and reads all of it.
func get(client *http.Client, url string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}

// stop returns how many there were, and those that failed.
func (p *probes) stop() (sent int, failed []failedProbe) {
	p.cancel()
	p.done.Wait()
	return p.sent, p.failed
}
