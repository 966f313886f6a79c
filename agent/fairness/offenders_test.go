package fairness

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// lines is a log.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, fmt.Sprintf(format, args...))
}

func (l *lines) written() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

func (l *lines) Debugf(format string, args ...any)   { l.add(format, args...) }
func (l *lines) Infof(format string, args ...any)    { l.add(format, args...) }
func (l *lines) Warningf(format string, args ...any) { l.add(format, args...) }
func (l *lines) Errorf(format string, args ...any)   { l.add(format, args...) }

// The log has one line when a flood begins, and one when it has ended.
func TestEpisodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		o := &Offenders{Log: &log, Name: func(a netip.Addr) string {
			if a == flooder {
				return "pod shop/crawler"
			}
			return ""
		}}
		lose := func(from netip.Addr, n int) {
			for range n {
				o.Lost(from)
				time.Sleep(10 * time.Millisecond)
			}
		}
		for range 2 {
			lose(quietOne, noteworthy-1) // too few for the log
			lose(flooder, 300)
			time.Sleep(2 * quiet)
		}
		synctest.Wait()
		want := []string{
			"client 10.244.0.1 (pod shop/crawler) asks for more names",
			"client 10.244.0.1 (pod shop/crawler) asks for no more than its share again: in 3s 300 of its queries",
		}
		want = append(want, want...)
		got := log.written()
		if len(got) != len(want) {
			t.Fatalf("%d lines: %q", len(got), got)
		}
		for i, line := range got {
			if !strings.HasPrefix(line, want[i]) {
				t.Errorf("line %d: %q, want %q", i, line, want[i])
			}
		}
		top := o.Top(1)
		if len(top) != 1 || top[0] != (Offender{flooder, "pod shop/crawler", 600}) || len(o.Top(10)) != 2 {
			t.Errorf("%+v", o.Top(10))
		}
	})
}

// Forged addresses take bounded memory and few lines, and hide nobody who floods.
func TestManyOffenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		o := &Offenders{Log: &log}
		for range 1000 {
			o.Lost(flooder)
		}
		a := netip.MustParseAddr("10.0.0.0")
		for range 10 * maxRecords {
			a = a.Next()
			for range noteworthy {
				o.Lost(a)
			}
		}
		synctest.Wait()
		if top := o.Top(10 * maxRecords); len(top) > maxRecords || top[0].Source != flooder {
			t.Errorf("%d are remembered, first %v", len(top), top[0])
		}
		if n := len(log.written()); n > maxNamed {
			t.Errorf("%d lines", n)
		}
		time.Sleep(3 * quiet)
	})
}
