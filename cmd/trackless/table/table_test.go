package table

import (
	"bytes"
	"strings"
	"testing"

	"github.com/trackless-dns/trackless/conntrack/summary"
	"github.com/trackless-dns/trackless/node/netns"
)

// A table without a limit is never full, and nothing is a share of 0.
func TestTableWithoutLimit(t *testing.T) {
	var b bytes.Buffer
	r := &summary.Table{Entries: 1000, Buckets: 500}
	if err := writeTable(&b, r); err != nil {
		t.Fatal(err)
	}
	if err := writeRate(&b, &summary.Rate{Entries: 1000}, "table", true); err != nil {
		t.Fatal(err)
	}
	if err := writeNamespaces(&b, []namespaceReport{{Namespace: netns.Namespace{Inode: 1}, Entries: 1000}}); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{"1,000 entries, no limit (nf_conntrack_max is 0)", "2.0 entries per bucket now"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, wrong := range []string{"at the limit", "0.0 %", "of 0"} {
		if strings.Contains(text, wrong) {
			t.Errorf("%q in\n%s", wrong, text)
		}
	}
}
