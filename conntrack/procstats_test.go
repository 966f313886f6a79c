package conntrack_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/trackless-dns/trackless/conntrack"
)

// procWithStats makes a proc that has the counters as given.
func procWithStats(t *testing.T, content string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "net/stat"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "net/stat/nf_conntrack"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestReadStats(t *testing.T) {
	root := procWithStats(t, ""+
		"entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n"+
		"00000005  00000001 00000002 00000000 00000003 00000000 00000000 00000004 00000005 00000006 00000007 00000008 00000009  00000000 00000000 00000000 0000000a\n"+
		"00000005  00000001 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000010 00000000 00000000 00000000  00000000 00000000 00000000 00000000\n")
	stats, err := conntrack.ReadStats(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(stats) != 2 || stats[1].CPU != 1 {
		t.Fatalf("%+v", stats)
	}
	want := conntrack.CPUStats{
		CPU: -1, ClashResolve: 2, Found: 2, Invalid: 3, ChainTooLong: 4, Insert: 5, InsertFailed: 0x16, Drop: 7, EarlyDrop: 8, Error: 9, SearchRestart: 10,
	}
	if sum := conntrack.Sum(stats); sum != want {
		t.Errorf("sum %+v, want %+v", sum, want)
	}
	counters := want.Counters()
	if counters[0].Name != "drop" || counters[0].Value != 7 || !counters[0].Loss {
		t.Errorf("first counter %+v", counters[0])
	}
	if lost := want.Lost(); lost != 0x16+8+4 { // drop is in insert_failed
		t.Errorf("%d lost", lost)
	}
	if _, err := conntrack.ReadStats(t.TempDir()); !errors.Is(err, conntrack.ErrUnavailable) {
		t.Errorf("without the file: %v, want ErrUnavailable", err)
	}
	bad := procWithStats(t, "entries found\n01\n")
	if _, err := conntrack.ReadStats(bad); err == nil {
		t.Error("a line with too few columns was accepted")
	}
}
