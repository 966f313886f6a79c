//go:build privileged

package conntrack_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/trackless-dns/trackless/conntrack"
)

// Both ways to the counters must agree on this kernel.
func TestReadStatsEqualsNetlink(t *testing.T) {
	t.Parallel()
	c, ns := dial(t)
	var proc []conntrack.CPUStats
	var err error
	ns.Do(func() { proc, err = conntrack.ReadStats("/proc/thread-self") })
	if errors.Is(err, conntrack.ErrUnavailable) {
		t.Skip("this kernel has no /proc/net/stat/nf_conntrack")
	}
	if err != nil {
		t.Fatal(err)
	}
	netlink, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(proc, netlink) {
		t.Errorf("proc %+v\nnetlink %+v", proc, netlink)
	}
}
