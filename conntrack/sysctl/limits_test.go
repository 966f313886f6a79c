//go:build privileged

package sysctl_test

import (
	"errors"
	"testing"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/sysctl"
	"github.com/trackless-dns/trackless/internal/testns"
)

func TestReadLimitsOfThisMachine(t *testing.T) {
	l, err := sysctl.ReadLimits("")
	if errors.Is(err, conntrack.ErrUnavailable) {
		testns.Skip(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if l.Max == 0 || l.Buckets == 0 {
		t.Errorf("%+v", l)
	}
	if _, err := sysctl.ReadLimits(t.TempDir()); !errors.Is(err, conntrack.ErrUnavailable) {
		t.Errorf("empty proc: %v, want ErrUnavailable", err)
	}
}
