//go:build privileged

package podmetrics

import (
	"net/netip"
	"testing"
	"time"

	"github.com/trackless-dns/trackless/conntrack"
	"github.com/trackless-dns/trackless/conntrack/groups"
	"github.com/trackless-dns/trackless/internal/testns"
	"github.com/trackless-dns/trackless/kubeapi/names"
)

func TestReadTable(t *testing.T) {
	t.Parallel()
	ns := testns.New(t)
	c, err := conntrack.Dial(&conntrack.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for port := range uint16(3) {
		e := &conntrack.Entry{Timeout: time.Minute}
		e.Original = conntrack.Tuple{Src: podAddress(1), Dst: netip.MustParseAddr("192.0.2.1"), SrcPort: 4000 + port, DstPort: 53, Proto: conntrack.UDP}
		e.Reply = e.Original.Mirror()
		if err := c.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	ns.Do(func() {
		collector, err := readTable(t.Context(), names.New(owners([]int{1})))
		if err != nil {
			t.Error(err)
			return
		}
		if rows := collector.Rows(groups.Pod); len(rows) != 1 || rows[0].Name != "shop/pod-1" || rows[0].Entries != 3 || rows[0].DNS != 3 {
			t.Errorf("rows %+v", rows)
		}
	})
}
