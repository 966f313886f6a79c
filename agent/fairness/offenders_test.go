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

// Queries are not held up while nobody can say whose an address is.
func TestNamesHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log lines
		known := make(chan struct{})
		o := &Offenders{Log: &log, Name: func(netip.Addr) string { <-known; return "" }}
		lost := make(chan struct{})
		go func() {
			defer close(lost)
			for range 2 * noteworthy {
				o.Lost(flooder)
			}
		}()
		synctest.Wait()
		select {
		case <-lost:
		default:
			t.Error("a query waits for a name")
		}
		close(known)
		time.Sleep(3 * quiet)
		if n := len(log.written()); n != 2 {
			t.Errorf("%d lines", n)
		}
	})
}

// A source that floods for long is named, also if others have had the lines of the log
// when it began, or many have lost more long ago.
func TestALateFlooderIsNamed(t *testing.T) {
	for _, tc := range []struct {
		name         string
		others, each int
		pause        time.Duration
	}{
		{"others were named", maxNamed, noteworthy, 0},
		{"others lost more long ago", maxRecords, 5000, 10 * quiet},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				o := &Offenders{Log: &log}
				a := netip.MustParseAddr("10.1.0.0")
				for range tc.others {
					a = a.Next()
					for range tc.each {
						o.Lost(a)
					}
				}
				time.Sleep(tc.pause)
				for range 11 * 100 { // 11 seconds
					o.Lost(flooder)
					o.Lost(quietOne)
					time.Sleep(10 * time.Millisecond)
				}
				if !slices.ContainsFunc(log.written(), func(line string) bool {
					return strings.HasPrefix(line, "client "+flooder.String()+" asks for more")
				}) {
					t.Errorf("%q", log.written())
				}
				time.Sleep(3 * quiet)
			})
		})
	}
}
