//go:build privileged

package integration

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testwait"
	"github.com/trackless-dns/trackless/lab"
)

// counting is a run of `dns top`, by name.
type counting struct {
	Total  struct{ Queries, Cached int }
	Groups []countedName
}

type countedName struct {
	Name            string
	Queries, Cached int
}

// While somebody asks, the names that pods ask are counted, and the cache's part of them.
func TestDNSTop(t *testing.T) {
	if testing.Short() {
		t.Skip("the program under test is not the race detector's")
	}
	node := newNode(t)
	serve(t, node, corefile(steady, "", listenAddresses(node)...))
	top := func(interval string) *exec.Cmd {
		return exec.Command(program, "dns", "top", "--once", "--by", "name", "-o", "json", "--interval", interval)
	}
	const interval = 8 * time.Second
	for attempt := range 3 {
		done := make(chan counting, 1)
		began := time.Now()
		go func() {
			var out []byte
			var c counting
			var err error
			// The one below may count at the moment.
			for refused := true; refused && t.Context().Err() == nil; refused = err != nil && time.Since(began) < interval {
				err = node.Namespace.Do(func() (err error) {
					out, err = top(interval.String()).Output()
					return err
				})
			}
			if err := cmp.Or(err, json.Unmarshal(out, &c)); err != nil {
				t.Errorf("dns top: %v\n%s", err, out)
			}
			done <- c
		}()
		// It counts once another one is refused.
		testwait.True(t, time.Minute, "counting", func() bool {
			return node.Namespace.Do(func() error { return top("100ms").Run() }) != nil
		})
		askOften(t, node)
		inTime := time.Since(began) < interval-time.Second
		c := <-done
		if !inTime {
			t.Logf("attempt %d: the load took longer than the count", attempt)
			continue
		}
		judge(t, c)
		return
	}
	testns.Skip(t, "this machine is too busy: the load takes more than %s", interval)
}

// askOften asks 25 names from two pods, the first 400 times, the second 200 times, and so on.
func askOften(t *testing.T, node *lab.Node) {
	t.Helper()
	for i := range 25 {
		for range 400 / (i + 1) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, err := node.Pods[i%2].Query(ctx, lab.UDP, listenAddresses(node)[0], new(dns.Msg).SetQuestion(nameOf(i), dns.TypeA))
			cancel()
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

func nameOf(i int) string { return fmt.Sprintf("svc-%d-2-3.lab.svc.cluster.local.", i) }

func judge(t *testing.T, c counting) {
	t.Helper()
	for i := range 20 {
		want := 400 / (i + 1)
		at := slices.IndexFunc(c.Groups, func(g countedName) bool { return g.Name == nameOf(i) })
		if at < 0 {
			t.Errorf("%s is not among the top: %+v", nameOf(i), c.Groups)
			continue
		}
		if got := c.Groups[at].Queries; got*100 < want*98 || got*100 > want*102 {
			t.Errorf("%s: %d queries, want %d", nameOf(i), got, want)
		}
		if got := c.Groups[at].Cached; got < want-2 || got > want {
			t.Errorf("%s: %d of %d queries were cached", nameOf(i), got, want)
		}
	}
	if c.Total.Queries == 0 || c.Total.Cached >= c.Total.Queries {
		t.Errorf("in all: %+v", c.Total)
	}
}
