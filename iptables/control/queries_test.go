package control

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// counter is an instance that counts queries.
type counter struct {
	fake
	asked time.Duration
	err   error
}

func (c *counter) CountQueries(_ context.Context, d time.Duration) (QueryCounts, error) {
	c.asked = d
	return QueryCounts{Seconds: d.Seconds(), Names: []QueryCount{{Key: "a.example.", Queries: 3, Misses: 1, Kernel: 1}}}, c.err
}

func TestCountQueries(t *testing.T) {
	instance := &counter{}
	s := serve(t, filepath.Join(t.TempDir(), "control.sock"), instance)
	c := NewClient(s.Addr())
	got, err := c.CountQueries(t.Context(), 1500*time.Millisecond)
	if err != nil || instance.asked != 1500*time.Millisecond || got.Seconds != 1.5 || len(got.Names) != 1 || got.Names[0] != (QueryCount{Key: "a.example.", Queries: 3, Misses: 1, Kernel: 1}) || got.Process.PID == 0 {
		t.Errorf("%+v, %v; asked for %s", got, err, instance.asked)
	}
	for _, d := range []time.Duration{0, longestCount + time.Second} {
		if _, err := c.CountQueries(t.Context(), d); err == nil || !strings.Contains(err.Error(), "millis") {
			t.Errorf("%s: %v", d, err)
		}
	}
	instance.err = errors.New("somebody else asks")
	var refused *RefusedError
	if _, err := c.CountQueries(t.Context(), time.Second); !errors.As(err, &refused) || refused.Reason != "somebody else asks" {
		t.Errorf("refused: %v", err)
	}
}
