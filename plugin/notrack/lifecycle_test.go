package notrack

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/coredns/coredns/core/dnsserver"

	"github.com/trackless-dns/trackless/agent/checks"
	"github.com/trackless-dns/trackless/agent/recorder"
)

// meeting is a server whose stop waits until all others are being stopped.
type meeting struct{ begun *sync.WaitGroup }

func (m meeting) Stop() error {
	m.begun.Done()
	m.begun.Wait()
	return nil
}

func TestServersStopAtOnce(t *testing.T) {
	synctest.Test(t, func(*testing.T) { // one after the other would be a deadlock
		var begun sync.WaitGroup
		begun.Add(3)
		m := meeting{&begun}
		stopAll([]stopper{m, m, m})
	})
}

func TestServersAreKnownByTheirChecks(t *testing.T) {
	config, err := newConfiguration()
	if err != nil {
		t.Fatal(err)
	}
	n := &NoTrack{config: config, block: &dnsserver.Config{}}
	var want []stopper
	for range 2 {
		s := new(dnsserver.Server)
		want = append(want, s)
		for range 2 {
			ctx := context.WithValue(t.Context(), dnsserver.Key{}, s)
			if _, err := n.answerProbe(ctx, &recorder.Recorder{}, config.identity.Query(checks.CheckLabel, "."), checks.Probe{Check: true, Own: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := config.askedServers()
	if len(got) != len(want) || !slices.Contains(got, want[0]) || !slices.Contains(got, want[1]) {
		t.Errorf("%d servers, want %d", len(got), len(want))
	}
}
