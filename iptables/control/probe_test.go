package control

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
)

// probed is an instance that is asked for its health.
type probed struct {
	fake
	ready, live error
	name        string
}

func (p *probed) Ready(_ context.Context, name string) (string, error) {
	p.name = name
	return "all is well", p.ready
}

func (p *probed) Live(context.Context) error { return p.live }

func TestProbes(t *testing.T) {
	hung := errors.New("it hangs")
	for _, tc := range []struct {
		name        string
		instance    *probed
		ready, live string // details; with a + if it is
	}{
		{"well", &probed{}, "+all is well", "+it answers"},
		{"not ready", &probed{ready: hung}, "it hangs", "+it answers"},
		{"not alive", &probed{live: hung}, "+all is well", "it hangs"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t, filepath.Join(t.TempDir(), "control.sock"), tc.instance)
			c := NewClient(s.Addr())
			ready, readyErr := c.Ready(t.Context(), "a b&c.example.org.")
			live, liveErr := c.Live(t.Context())
			if readyErr != nil || liveErr != nil {
				t.Fatal(readyErr, liveErr)
			}
			for _, got := range []struct {
				h    Health
				want string
			}{{ready, tc.ready}, {live, tc.live}} {
				detail := got.h.Detail
				if got.h.OK {
					detail = "+" + detail
				}
				if detail != got.want || got.h.Process != Self() {
					t.Errorf("%+v, want %q", got.h, got.want)
				}
			}
			if tc.instance.name != "a b&c.example.org." {
				t.Errorf("asked for %q", tc.instance.name)
			}
		})
	}
}

func TestProbesNeedAProber(t *testing.T) {
	s := serve(t, filepath.Join(t.TempDir(), "control.sock"), &fake{})
	if h, err := NewClient(s.Addr()).Live(t.Context()); err == nil {
		t.Errorf("an instance that knows no probes says %+v", h)
	}
}
