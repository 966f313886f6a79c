//go:build load

package cache

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

func TestWaitersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up := replies(nil, anA)
		answer := up.f
		up.f = func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			time.Sleep(maxPatience / 2)
			return answer(ctx, w, r)
		}
		c := newCache(t, up, nil)
		var wg sync.WaitGroup
		const maxWaiters, over = 16384, 10 // maxWaiters as in package flight
		for range 1 + maxWaiters + over {
			wg.Go(func() { ask(t, c, question(www, nil)) })
		}
		wg.Wait()
		if up.count() != 1+over {
			t.Errorf("%d queries upstream, want %d", up.count(), 1+over)
		}
	})
}
