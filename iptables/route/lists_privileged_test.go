//go:build privileged

package route

import (
	"testing"
	"time"

	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/internal/testwait"
)

// Between changes nothing is listed: a reader that asks often costs nothing.
func TestLists(t *testing.T) {
	t.Parallel()
	testns.Enter(t)
	var l Lists
	read := func() (links, version int) {
		t.Helper()
		all, _, version, err := l.Read()
		if err != nil {
			t.Fatal(err)
		}
		return len(all), version
	}
	before, first := read()
	testns.Run(t, "ip", "link", "add", "pod", "type", "veth", "peer", "name", "peer")
	if links, version := read(); links != before || version != first {
		t.Errorf("%d links in version %d without an announced change, want %d in version %d", links, version, before, first)
	}
	l.Changed()
	testwait.True(t, 10*time.Second, "listed again after a change", func() bool {
		links, version := read()
		return links == before+2 && version == first+1
	})
	l.Renew()
	if _, version := read(); version != first+2 {
		t.Errorf("version %d after Renew, want %d", version, first+2)
	}
}
