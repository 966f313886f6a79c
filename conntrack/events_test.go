//go:build privileged

package conntrack_test

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
)

func TestListen(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		types []conntrack.EventType
		want  []conntrack.EventType
	}{
		{"all", nil, []conntrack.EventType{conntrack.EventNew, conntrack.EventDestroy}},
		{"destroy only", []conntrack.EventType{conntrack.EventDestroy}, []conntrack.EventType{conntrack.EventDestroy}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c, ns := dial(t)
			l, err := conntrack.Listen(&conntrack.Config{NetNS: ns.FD()}, test.types...)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			e := entry(tuple(conntrack.UDP, "10.0.0.1:1000", "10.0.0.2:53"))
			create(t, c, e)
			if err := c.Delete(e); err != nil {
				t.Fatal(err)
			}
			var got []conntrack.EventType
			if err := l.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			for len(got) < len(test.want) {
				if err := l.Receive(func(typ conntrack.EventType, seen *conntrack.Entry) error {
					if seen.Original != e.Original {
						t.Errorf("%s event for %v, want %v", typ, seen.Original, e.Original)
					}
					got = append(got, typ)
					return nil
				}); err != nil {
					t.Fatalf("after %v: %v", got, err)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("events %v, want %v", got, test.want)
			}
		})
	}
}

func TestReceiveDeadline(t *testing.T) {
	t.Parallel()
	_, ns := dial(t)
	l, err := conntrack.Listen(&conntrack.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := l.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := l.Receive(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Receive = %v, want os.ErrDeadlineExceeded", err)
	}
}

// A reader that falls behind is told so, and can go on.
func TestReceiveOverrun(t *testing.T) {
	t.Parallel()
	c, ns := dial(t)
	l, err := conntrack.Listen(&conntrack.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := l.SetBuffer(4096); err != nil {
		t.Fatal(err)
	}
	for port := range uint16(200) {
		tup := tuple(conntrack.UDP, "10.0.0.1:1000", "10.0.0.2:53")
		tup.SrcPort += port
		create(t, c, entry(tup))
	}
	events, overruns := 0, 0
	if err := l.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for overruns == 0 || events == 0 {
		err := l.Receive(func(conntrack.EventType, *conntrack.Entry) error {
			events++
			return nil
		})
		switch {
		case errors.Is(err, conntrack.ErrOverrun):
			overruns++
		case err != nil:
			t.Fatalf("after %d events and %d overruns: %v", events, overruns, err)
		}
	}
}

func TestDumpExpectations(t *testing.T) {
	t.Parallel()
	c, ns := dial(t)
	master := entry(tuple(conntrack.TCP, "10.0.0.1:1000", "10.0.0.2:21"), func(e *conntrack.Entry) {
		e.TCP.State, e.Helper = conntrack.TCPEstablished, "ftp"
		e.Status = conntrack.StatusSeenReply | conntrack.StatusAssured
	})
	create(t, c, master)
	run(t, ns, "conntrack", "-I", "expect", "-p", "tcp", "--timeout", "100",
		"--orig-src", "10.0.0.1", "--orig-dst", "10.0.0.2", "--sport", "1000", "--dport", "21",
		"--tuple-src", "10.0.0.2", "--tuple-dst", "10.0.0.1",
		"--mask-src", "255.255.255.255", "--mask-dst", "255.255.255.255",
		"--tuple-port-src", "0", "--tuple-port-dst", "5000", "--mask-port-src", "0", "--mask-port-dst", "65535")
	var got []conntrack.Expectation
	if err := c.DumpExpectations(func(x *conntrack.Expectation) error {
		got = append(got, *x)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 {
		t.Fatalf("%d expectations, want 1", len(got))
	}
	x := got[0]
	if x.Master != master.Original || x.Tuple.Src != master.Original.Dst || x.Tuple.Dst != master.Original.Src ||
		x.Mask.Dst.String() != "255.255.255.255" || x.Timeout <= 0 || x.Helper != "ftp" || x.ID == 0 {
		t.Errorf("expectation %+v", x)
	}
}
