//go:build load

package upstream

import (
	"errors"
	"testing"
	"time"
)

// silentAddr is an address at which no process answers.
func silentAddr(t *testing.T, ip string) *server {
	t.Helper()
	s := newServer(t, ip)
	s.be(func() { s.silent = true })
	return s
}

// A dead fallback delays one query by a fraction of a try, and later queries not at all.
func TestDeadFallback(t *testing.T) {
	fakeSources(t)
	dead, alive := silentAddr(t, "127.0.0.1"), newServer(t, "127.0.0.2")
	u := started(t, "upstream service kube-system/kube-dns {\n fallback "+dead.addr.String()+" "+alive.addr.String()+"\n read_timeout 5s\n}")
	began := time.Now()
	answered(t, u, 1)
	if took := time.Since(began); took >= 5*time.Second {
		t.Errorf("the first query waited %s: for the whole try", took)
	}
	if dead.got("udp") != 1 {
		t.Errorf("the first of the fallback was asked %d times, want once", dead.got("udp"))
	}
	eventually(t, "the dead one is not asked any more", func() bool {
		before := dead.got("udp")
		answered(t, u, 20)
		return dead.got("udp") == before
	})
	dead.be(func() { dead.silent = false })
	eventually(t, "it is the first again", func() bool {
		before := alive.got("udp")
		answered(t, u, 5)
		return alive.got("udp") == before
	})
}

func TestFailFast(t *testing.T) {
	fakeSources(t)
	dead := silentAddr(t, "127.0.0.1")
	u := started(t, "upstream service kube-system/kube-dns {\n fallback "+dead.addr.String()+"\n read_timeout 50ms\n max_fails 1\n health_check 10ms\n failfast_all_unhealthy_upstreams\n}")
	eventually(t, "it fails at once", func() bool {
		_, err := ask(u)
		return errors.Is(err, errAllDown)
	})
	dead.be(func() { dead.silent = false })
	eventually(t, "it answers again", func() bool {
		_, err := ask(u)
		return err == nil
	})
}

// Tries beside others are bounded: if no address answers, they would double the load.
func TestExtraTriesAreBounded(t *testing.T) {
	fakeSources(t)
	dead := silentAddr(t, "127.0.0.1")
	u := started(t, "upstream service kube-system/kube-dns {\n fallback "+dead.addr.String()+"\n read_timeout 500ms\n max_fails 0\n}")
	u.extra.Store(maxExtra)
	if _, err := ask(u); err == nil {
		t.Error("an answer")
	}
	if n := dead.got("udp"); n != 2 || u.extra.Load() != maxExtra {
		t.Errorf("%d queries, want one and one after it; %d extra tries", n, u.extra.Load())
	}
	u.extra.Store(0)
	if _, err := ask(u); err == nil {
		t.Error("an answer")
	}
	eventually(t, "what ran beside has ended", func() bool { return u.extra.Load() == 0 })
}
