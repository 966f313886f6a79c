package loglimit

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

type lines []string

func (l *lines) Warningf(format string, args ...any) { *l = append(*l, fmt.Sprintf(format, args...)) }

func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		l := New(&log)
		for i := range 1000 {
			l.Warningf("closed", "client %d", i)
			time.Sleep(20 * time.Millisecond) // 20 s in all
		}
		l.Warningf("refused", "another kind, 100 %%")
		time.Sleep(Interval)
		l.Warningf("refused", "again, 100 %%")
		want := lines{"client 0", "client 500 (and 499 more of this kind since the last one)", "another kind, 100 %", "again, 100 %"}
		if diff := cmp.Diff(want, log); diff != "" {
			t.Errorf("lines (-want +got):\n%s", diff)
		}
	})
}
